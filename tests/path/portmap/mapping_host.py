"""A program for tests: a UDP and a TCP echo server whose ports a `PortMapper` keeps mapped.

Prints a line of JSON for each change and each look; ends when its input does.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import msgspec

from lattica.config import PortMapConfig
from lattica.path.portmap import PortMapper


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data, addr)


async def main(options: dict[str, object]) -> None:
    loop = asyncio.get_running_loop()
    config = msgspec.convert(options, PortMapConfig)
    udp, _ = await loop.create_datagram_endpoint(Echo, local_addr=("0.0.0.0", 4242))
    tcp = await asyncio.start_server(_echo, "0.0.0.0", 4242)
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop.add_reader(sys.stdin.fileno(), lambda: lines.put_nowait(sys.stdin.readline()))
    async with PortMapper(
        port=4242,
        tcp_port=4242,
        config=config,
        on_change=lambda addresses: tell(mapper, changed=addresses),
    ) as mapper:
        while line := await lines.get():
            tell(mapper, answer=line.strip())
    loop.remove_reader(sys.stdin.fileno())
    udp.close()
    tcp.close()


def tell(mapper: PortMapper, **more: object) -> None:
    line = {
        "addresses": mapper.external_addresses,
        "protocols": sorted({each.protocol.value for each in mapper.mappings}),
        "hosts": sorted({each.host for each in mapper.mappings}),
        "lifetimes": sorted({each.lifetime for each in mapper.mappings}),
        "status": mapper.status,
        **more,
    }
    print(json.dumps(line), flush=True)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read(100))
    await writer.drain()
    writer.close()


asyncio.run(main(json.loads(sys.argv[1])))
