"""Links inside TLS, also through a proxy; and what strangers get there."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from lattica.config import LinkConfig
from lattica.errors import UnreachableError
from lattica.path.combined import CombinedPath
from lattica.path.tls import TlsPath
from lattica.path.udp import UdpPath
from tests.link.helpers import ALICE, BOB, Peer, eventually, exchange, peer

pytestmark = pytest.mark.anyio


def both(proxy: str = "") -> CombinedPath:
    return CombinedPath(
        {"udp:": UdpPath.bind("127.0.0.1:0"), "tls:": TlsPath.bind("127.0.0.1:0", proxy=proxy)}
    )


def tls_only(peer: Peer) -> list[str]:
    return [address for address in peer.endpoint.addresses if address.startswith("tls:")]


@asynccontextmanager
async def linked(proxy: str = "") -> AsyncIterator[tuple[Peer, Peer]]:
    """Alice has dialled Bob inside TLS."""
    async with (
        peer(ALICE, both(proxy), config=LinkConfig()) as alice,
        peer(BOB, both(), config=LinkConfig()) as bob,
    ):
        await alice.endpoint.connect(bob.id, tls_only(bob))
        await bob.until_linked(alice)
        yield alice, bob


async def test_a_link_inside_tls_carries_bulk_both_ways() -> None:
    async with linked() as (alice, bob):
        assert alice.to(bob).link.address == tls_only(bob)[0]
        await exchange(alice.to(bob).link, bob.to(alice), os.urandom(8_000_000))
        await exchange(bob.to(alice).link, alice.to(bob), os.urandom(8_000_000))
        await eventually(lambda: not alice.endpoint.path.statistics().queued)


async def test_a_link_goes_through_a_proxy() -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head)
        host, port = head.split(b" ")[1].decode().rsplit(":", 1)
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        try:
            await asyncio.gather(pour(reader, far_writer), pour(far_reader, writer))
        except OSError:
            pass
        finally:
            far_writer.close()
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with linked(f"http://127.0.0.1:{port}") as (alice, bob):
            assert alice.to(bob).link.address == tls_only(bob)[0]
            await exchange(alice.to(bob).link, bob.to(alice), os.urandom(1_000_000))
            await exchange(bob.to(alice).link, alice.to(bob), os.urandom(1_000_000))
            assert len(asked) == 1
        server.close()


async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_a_proxy_that_says_no_is_the_error_that_a_caller_reads() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Who?\r\n\r\n")
        writer.close()

    async with (
        await asyncio.start_server(serve, "127.0.0.1", 0) as server,
        peer(ALICE, both(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")) as alice,
        peer(BOB, both()) as bob,
    ):
        with pytest.raises(UnreachableError, match="answered 407: give it credentials"):
            await alice.endpoint.connect(bob.id, tls_only(bob))
        server.close()


async def test_who_speaks_no_tls_is_told_to_the_caller() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"220 mail.example.org ESMTP\r\n" * 10)
        writer.close()

    async with (
        await asyncio.start_server(serve, "127.0.0.1", 0) as server,
        peer(ALICE, both()) as alice,
    ):
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UnreachableError, match="no TLS there"):
            await alice.endpoint.connect(BOB.peer_id, [f"tls:127.0.0.1:{port}"])
        server.close()


async def test_a_browser_gets_an_ordinary_answer() -> None:
    async with peer(BOB, both()) as bob:
        host, port = tls_only(bob)[0].removeprefix("tls:").rsplit(":", 1)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: scanner\r\n\r\n")
        with anyio.fail_after(5):
            assert (await reader.read(100)).startswith(b"HTTP/1.1 404 Not Found\r\n")
        writer.close()
        await eventually(lambda: bob.endpoint.path.counters["connection:malformed"] == 1)


async def test_strangers_that_say_nothing_or_garbage_leave_nothing_behind() -> None:
    async with linked() as (alice, bob):
        host, port = tls_only(bob)[0].removeprefix("tls:").rsplit(":", 1)
        strangers = [socket.create_connection((host, int(port))) for _ in range(20)]
        for each in strangers[:10]:
            each.send(os.urandom(200))
        await eventually(lambda: bob.endpoint.path.counters["connection:unwrapped"] == 10)
        await exchange(alice.to(bob).link, bob.to(alice), os.urandom(100_000))
        for each in strangers:
            each.close()


@pytest.mark.parametrize(
    "address", ["tls:.example:443", "tls:..:443", f"tls:{'x' * 70}.example:443", "tls:[x y]:443"]
)
async def test_an_address_that_is_no_name_costs_the_dial_and_nothing_else(address: str) -> None:
    """Anybody may publish it."""
    async with (
        peer(ALICE, both(), config=LinkConfig(connect_timeout=3.0)) as alice,
        peer(BOB, both(), config=LinkConfig()) as bob,
    ):
        with pytest.raises(UnreachableError):
            await alice.endpoint.connect(bob.id, [address])
        await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
