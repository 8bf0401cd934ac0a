"""A small HTTP CONNECT proxy, as networks have that let nothing else out (RFC 9110, 9.3.6).

`python -m tests.netlab.http_proxy ADDRESS PORT [USER:PASSWORD]`
"""

from __future__ import annotations

import asyncio
import base64
import sys

PATIENCE = 10.0  # seconds for a request and for a connection onwards
HEAD = 16_384  # bytes


async def serve(address: str, port: int, credentials: str | None) -> None:
    """Until the process ends."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _tunnel(reader, writer, credentials)
        except (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError):
            pass  # its two ends see that it is over
        finally:
            writer.close()

    server = await asyncio.start_server(handle, address, port, limit=HEAD)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


async def _tunnel(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, credentials: str | None
) -> None:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    request, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = request.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (s.partition(":") for s in lines)}
    if credentials is not None:
        wanted = f"Basic {base64.b64encode(credentials.encode()).decode()}"
        if headers.get("proxy-authorization") != wanted:
            writer.write(b'HTTP/1.1 407 Who?\r\nProxy-Authenticate: Basic realm="lab"\r\n\r\n')
            return
    if method != "CONNECT":
        writer.write(b"HTTP/1.1 405 CONNECT only\r\nAllow: CONNECT\r\n\r\n")
        return
    host, _, port = target.rpartition(":")
    try:
        onwards = asyncio.open_connection(host.strip("[]"), int(port))
        far_reader, far_writer = await asyncio.wait_for(onwards, PATIENCE)
    except (OSError, TimeoutError):
        writer.write(b"HTTP/1.1 502 Not reached\r\n\r\n")
        return
    try:
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        await asyncio.gather(_pour(reader, far_writer), _pour(far_reader, writer))
    finally:
        far_writer.close()


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):  # as long as both ends like
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3] if sys.argv[3:] else None))
