"""The TCP path over real sockets: datagrams, strangers, limits, ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from lattica.errors import AddressError, PortInUseError
from lattica.path import tcp, tcp_connection
from lattica.path.combined import CombinedPath
from lattica.path.interface import VirtualAddress
from lattica.path.tcp import TcpPath
from lattica.path.tcp_frames import MAX_FRAME
from lattica.path.udp import UdpPath
from tests.path.test_udp import Inbox, free_port

pytestmark = pytest.mark.anyio


class Paths:
    """A path that dials, one that listens, and what arrives at each."""

    def __init__(self) -> None:
        self.one, self.other = TcpPath(), TcpPath.bind("tcp:127.0.0.1:0")
        self.back, self.inbox = Inbox(), Inbox()

    async def dial(self) -> VirtualAddress:
        address = await self.one.resolve(self.other.addresses[0])
        self.one.hold(address)
        return address


@asynccontextmanager
async def running() -> AsyncIterator[Paths]:
    paths = Paths()
    paths.one.start(paths.back)
    paths.other.start(paths.inbox)
    yield paths
    paths.one.close()
    paths.other.close()
    assert not paths.other._connections


async def until(condition: object) -> None:
    assert callable(condition)
    with anyio.fail_after(5):
        while not condition():
            await anyio.sleep(0.005)


@asynccontextmanager
async def stranger(paths: Paths) -> AsyncIterator[socket.socket]:
    """A raw connection to the path that listens."""
    host, port = paths.other.addresses[0].removeprefix("tcp:").rsplit(":", 1)
    with socket.socket() as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        yield sock


async def ended(sock: socket.socket) -> bool:
    """Whether the other end has hung up, within the time of a test."""
    with anyio.fail_after(5):
        try:
            return await asyncio.get_running_loop().sock_recv(sock, 1) == b""
        except ConnectionError:
            return True


async def test_datagrams_of_every_size_arrive_in_order_both_ways() -> None:
    async with running() as paths:
        address = await paths.dial()
        sent = [b"\x40" + bytes(size) for size in (0, 1, 1199, MAX_FRAME - 1)] * 20
        paths.one.send(sent, address)
        paths.one.send([b"\x40last"], address)
        await paths.inbox.until(81)
        assert [data for data, _ in paths.inbox.packets] == [*sent, b"\x40last"]
        sender = paths.inbox.packets[0][1]
        assert {source for _, source in paths.inbox.packets} == {sender}
        paths.other.send(sent, sender)
        await paths.back.until(80)
        assert [data for data, _ in paths.back.packets] == sent
        assert {source for _, source in paths.back.packets} == {address}
        assert paths.one.describe(address) == paths.other.addresses[0]
        assert paths.one.statistics().datagrams_out == 81
        assert paths.other.statistics().datagrams_in == 81


async def test_megabytes_arrive_and_the_queue_is_bounded() -> None:
    async with running() as paths:
        address = await paths.dial()
        paths.one.send([b"\x40"], address)
        block = [b"\x40" * MAX_FRAME] * 64
        for _ in range(20):
            paths.one.send(block, address)
            assert paths.one.statistics().queued <= tcp_connection.MAX_QUEUE
        sent = paths.one.statistics().datagrams_out
        assert sent + paths.one.counters["send_queue_full"] == 20 * 64 + 1
        assert sent * MAX_FRAME > tcp.WINDOW  # whatever a window allows is not dropped
        await paths.inbox.until(sent)
        assert paths.one.statistics().queued == 0


async def test_a_port_where_nobody_listens_is_told_at_each_attempt() -> None:
    async with running() as paths:
        address = await paths.one.resolve(f"tcp:127.0.0.1:{free_port()}")
        paths.one.hold(address)
        paths.one.send([b"\x40"], address)
        await paths.back.until_refused()
        paths.one.send([b"\x40"], address)
        await paths.back.until(lambda: len(paths.back.refused) == 2)
        assert set(paths.back.refused) == {address}
        paths.one.release(address)


@pytest.mark.parametrize("end", ["released", "closed"])
async def test_an_end_is_told_to_the_other_side(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "LINGER", 0.0)
    async with running() as paths:
        address = await paths.dial()
        paths.one.send([b"\x40hello"], address)
        await paths.inbox.until(1)
        sender = paths.inbox.packets[0][1]
        paths.other.hold(sender)
        paths.one.send([b"\x40last words"], address)
        if end == "closed":
            paths.one.close()
        else:
            paths.one.release(address)
        await paths.inbox.until_refused()
        assert paths.inbox.refused == [sender]
        assert paths.inbox.packets[-1][0] == b"\x40last words"
        paths.other.send([b"\x40"], sender)
        assert paths.other.counters["sent_nowhere"] == 1
        paths.other.release(sender)
        await until(lambda: not paths.other._connections)


async def test_every_dial_is_a_connection_of_its_own() -> None:
    async with running() as paths:
        addresses = [await paths.dial() for _ in range(3)]
        for address in addresses:
            paths.one.send([b"\x40"], address)
        await paths.inbox.until(3)
        assert len({source for _, source in paths.inbox.packets}) == 3


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\x00\x00", "malformed"),
        (b"\xff\xff" + bytes(100), "malformed"),
        (b"GET / HTTP/1.1\r\n\r\n", "malformed"),
        (b"\x00\x04\x00\x00\x00\x00", "malformed"),  # a frame, but neither QUIC nor a probe
        (b"\x16\x03\x01\x02\x00\x01", "cut"),  # TLS, and then it hangs up
        (b"\x00\x10half", "cut"),
        (b"", "ended"),
    ],
)
async def test_what_is_not_ours_ends_the_connection_and_is_counted(
    sent: bytes, reason: str
) -> None:
    async with running() as paths:
        async with stranger(paths) as sock:
            if sent:
                await asyncio.get_running_loop().sock_sendall(sock, sent)
            if reason == "malformed":
                assert await ended(sock)
        await until(lambda: paths.other.counters[f"connection:{reason}"] == 1)
        assert paths.inbox.packets == []
        assert not paths.other._connections
        assert not paths.other._sources


async def test_a_connection_without_a_link_is_closed_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tcp, "IDLE", 0.2)
    async with running() as paths:
        async with stranger(paths) as sock:
            await asyncio.get_running_loop().sock_sendall(sock, b"\x00\x10half")
            assert await ended(sock)
        address = await paths.dial()  # one that a link holds stays
        paths.one.send([b"\x40"], address)
        await paths.inbox.until(1)
        paths.other.hold(paths.inbox.packets[0][1])
        await anyio.sleep(1.0)
        paths.one.send([b"\x40"], address)
        await paths.inbox.until(2)


async def test_connections_of_one_source_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "MAX_PER_SOURCE", 3)
    async with running() as paths:
        async with (
            stranger(paths) as one,
            stranger(paths),
            stranger(paths),
            stranger(paths) as last,
        ):
            assert await ended(last)
            assert paths.other.counters["too_many_connections"] == 1
            one.close()
            await until(lambda: len(paths.other._connections) == 2)
            async with stranger(paths):
                await until(lambda: len(paths.other._connections) == 3)
        assert paths.other.counters["too_many_connections"] == 1


async def test_connections_are_limited_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "MAX_ACCEPTED", 1)
    async with running() as paths, stranger(paths), stranger(paths) as last:
        assert await ended(last)


async def test_probes_reach_whoever_understands_them() -> None:
    async with running() as paths:
        paths.one.send([b"\x05probe", b"\x40packet"], await paths.dial())
        await paths.inbox.until(1)
        assert [data for data, _ in paths.inbox.probes] == [b"\x05probe"]


async def test_a_path_that_does_not_listen_has_no_addresses() -> None:
    assert TcpPath().addresses == ()
    listening = TcpPath.bind("127.0.0.1:0")
    assert listening.addresses[0].startswith("tcp:127.0.0.1:")
    port = listening.addresses[0].rsplit(":", 1)[1]
    with pytest.raises(PortInUseError, match=f"TCP port {port} is held"):
        TcpPath.bind(f"127.0.0.1:{port}")
    listening.close()


async def test_other_schemes_are_refused() -> None:
    with pytest.raises(AddressError, match="tcp:host:port"):
        await TcpPath().resolve("127.0.0.1:1")
    for address in ("tcp:127.0.0.1", "tcp:127.0.0.1:0", "tcp:", "tcp:::1:5"):
        with pytest.raises(AddressError):
            await TcpPath().resolve(address)


async def test_a_combined_path_chooses_by_the_scheme() -> None:
    udp = UdpPath.bind("127.0.0.1:0")
    path = CombinedPath({"udp:": udp, "tcp:": TcpPath.bind("127.0.0.1:0")})
    inbox, back = Inbox(), Inbox()
    path.start(inbox)
    other = CombinedPath({"udp:": UdpPath.bind("127.0.0.1:0"), "tcp:": TcpPath()})
    other.start(back)
    over_udp, over_tcp = path.addresses
    assert not over_udp.startswith("tcp:")
    for address in (over_udp, "udp:" + over_udp, over_tcp):
        virtual = await other.resolve(address)
        assert other.can_probe(virtual) is (address != over_tcp)
        assert other.describe(virtual) == address.removeprefix("udp:")
        other.hold(virtual)
        other.send([b"\x40"], virtual)
    await inbox.until(3)
    for _, source in inbox.packets:
        path.send([b"\x40back"], source)
    await back.until(3)
    assert path.statistics().datagrams_in == path.statistics().datagrams_out == 3
    assert path.statistics().receive_buffer == udp.buffers[0]
    assert other.datagram_limit(virtual) == MAX_FRAME
    assert (other.window_limit(virtual) or 0) < tcp_connection.MAX_QUEUE
    with pytest.raises(AddressError, match="does not use tcp paths"):
        await CombinedPath({"udp:": udp}).resolve(over_tcp)
    path.close()
    other.close()
    assert path.counters == {}
