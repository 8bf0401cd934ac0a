"""The UDP path: addresses, errors a user can make, and a socket that does not die."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator, Sequence

import anyio
import pytest

from lattica.errors import AddressError, PathError, PortInUseError
from lattica.path import udp
from lattica.path.interface import VirtualAddress
from lattica.path.udp import UdpPath

pytestmark = pytest.mark.anyio


class Inbox:
    """Keeps what arrives."""

    def __init__(self) -> None:
        self.packets: list[tuple[bytes, VirtualAddress]] = []
        self.batches = 0
        self.refused: list[VirtualAddress] = []
        self.probes: list[tuple[bytes, VirtualAddress]] = []
        self.too_big: list[tuple[VirtualAddress, int]] = []
        self._changed = anyio.Event()

    def packets_received(self, packets: Sequence[tuple[bytes, VirtualAddress]]) -> None:
        self.packets += packets
        self.batches += 1
        self._wake()

    def path_refused(self, address: VirtualAddress) -> None:
        self.refused.append(address)
        self._wake()

    def probes_received(self, probes: Sequence[tuple[bytes, VirtualAddress]]) -> None:
        self.probes += probes
        self._wake()

    def path_too_big(self, address: VirtualAddress, size: int) -> None:
        self.too_big.append((address, size))
        self._wake()

    async def until(self, condition: int | Callable[[], bool]) -> None:
        """Wait for so many packets, or for what is asked."""
        with anyio.fail_after(5):
            while not (
                len(self.packets) >= condition if isinstance(condition, int) else condition()
            ):
                await self._changed.wait()

    async def until_refused(self) -> None:
        await self.until(lambda: bool(self.refused))

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


@pytest.fixture
def paths() -> Iterator[tuple[UdpPath, UdpPath]]:
    one, other = UdpPath.bind("127.0.0.1:0"), UdpPath.bind("127.0.0.1:0")
    yield one, other
    one.close()
    other.close()


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_datagrams_arrive_with_the_senders_address(paths: tuple[UdpPath, UdpPath]) -> None:
    one, other = paths
    inbox, back = Inbox(), Inbox()
    one.start(back)
    other.start(inbox)
    sent = [b"\x40%d" % index for index in range(50)]
    one.send(sent, await one.resolve(other.addresses[0]))
    await inbox.until(50)
    assert [data for data, _ in inbox.packets] == sent
    senders = {address for _, address in inbox.packets}
    assert len(senders) == 1
    sender = senders.pop()
    assert other.describe(sender) == one.addresses[0]
    other.send([b"\x40answer"], sender)
    await back.until(1)


async def test_many_waiting_datagrams_take_few_wake_ups(paths: tuple[UdpPath, UdpPath]) -> None:
    one, other = paths
    inbox = Inbox()
    one.start(Inbox())
    one.send([b"\x40"] * 100, await one.resolve(other.addresses[0]))
    other.start(inbox)
    await inbox.until(100)
    assert inbox.batches <= 3


async def test_what_is_not_quic_is_counted_and_dropped(paths: tuple[UdpPath, UdpPath]) -> None:
    one, other = paths
    inbox = Inbox()
    one.start(Inbox())
    other.start(inbox)
    one.send([b"", b"\x00stun", b"\x80", b"\x40good"], await one.resolve(other.addresses[0]))
    await inbox.until(1)
    assert [data for data, _ in inbox.packets] == [b"\x40good"]
    assert other.counters["garbage"] == 3


async def test_a_port_in_use_names_the_port_and_the_cure() -> None:
    first = UdpPath.bind("127.0.0.1:0")
    port = first.addresses[0].rsplit(":", 1)[1]
    try:
        with pytest.raises(PortInUseError, match=rf"port {port} is held.*or 0 for any free one"):
            UdpPath.bind(f"127.0.0.1:{port}")
    finally:
        first.close()
    UdpPath.bind(f"127.0.0.1:{port}").close()  # and a closed path frees it


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":1", "1.2.3.4:x", "1.2.3.4:65536", "::1:5", "1.2.3.4:-1"]
)
async def test_a_malformed_address_is_told(address: str, paths: tuple[UdpPath, UdpPath]) -> None:
    with pytest.raises(AddressError):
        UdpPath.bind(address)
    with pytest.raises(AddressError):
        await paths[0].resolve(address)


async def test_an_address_of_another_machine_cannot_be_bound() -> None:
    with pytest.raises(AddressError, match="not an address of this machine"):
        UdpPath.bind("192.0.2.1:0")


async def test_port_zero_cannot_be_dialled(paths: tuple[UdpPath, UdpPath]) -> None:
    with pytest.raises(AddressError, match="port 0"):
        await paths[0].resolve("127.0.0.1:0")


async def test_a_name_resolves(paths: tuple[UdpPath, UdpPath]) -> None:
    virtual = await paths[0].resolve("localhost:4242")
    assert paths[0].describe(virtual) == "127.0.0.1:4242"
    assert virtual == await paths[0].resolve("127.0.0.1:4242")


async def test_a_refused_port_is_reported_and_the_socket_lives(
    paths: tuple[UdpPath, UdpPath],
) -> None:
    one, other = paths
    mine, theirs = Inbox(), Inbox()
    one.start(mine)
    other.start(theirs)
    nowhere = await one.resolve(f"127.0.0.1:{free_port()}")
    one.send([b"\x40"], nowhere)
    await mine.until_refused()
    assert mine.refused == [nowhere]
    # Errors of one address must not cost another its packets.
    somewhere = await one.resolve(other.addresses[0])
    for index in range(20):
        one.send([b"\x40"], nowhere)
        one.send([b"\x40%d" % index], somewhere)
    await theirs.until(20)
    other.send([b"\x40"], theirs.packets[0][1])
    await mine.until(1)


async def test_a_datagram_that_is_too_large_is_dropped_and_counted(
    paths: tuple[UdpPath, UdpPath],
) -> None:
    one, other = paths
    mine, inbox = Inbox(), Inbox()
    one.start(mine)
    other.start(inbox)
    virtual = await one.resolve(other.addresses[0])
    one.send([bytes(70_000), b"\x40next"], virtual)
    await inbox.until(1)
    assert one.counters["send:EMSGSIZE"] == 1
    await mine.until(lambda: bool(mine.too_big))
    assert mine.too_big == [(virtual, 70_000)]
    assert mine.refused == []  # the link is not lost for it


async def test_a_full_send_buffer_queues_and_then_drops(
    paths: tuple[UdpPath, UdpPath], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = paths
    inbox = Inbox()
    one.start(Inbox())
    other.start(inbox)
    virtual = await one.resolve(other.addresses[0])

    def is_full(*_: object) -> int:
        return 0

    monkeypatch.setattr(udp, "MAX_QUEUE", 30)
    monkeypatch.setattr(one._writer, "write", is_full)
    monkeypatch.setattr(one._loop, "add_writer", lambda *_: None)
    one.send([b"\x40aaaaaaaaa", b"\x40bbbbbbbbb"], virtual)
    one.send([b"\x40ccccccccc", b"\x40dropped.."], virtual)
    assert one.counters["send_queue_full"] == 1
    assert one.statistics().queued == 30
    monkeypatch.undo()
    one._writable()
    await inbox.until(3)
    assert [data[1:2] for data, _ in inbox.packets] == [b"a", b"b", b"c"]
    assert one.statistics().queued == 0


async def test_granted_buffers_are_reported(paths: tuple[UdpPath, UdpPath]) -> None:
    one = paths[0]
    told = one.statistics()
    granted = one._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert told.receive_buffer in (granted, granted // 2)  # Linux doubles what it grants
    assert told.send_buffer >= 4096


async def test_traffic_is_counted(paths: tuple[UdpPath, UdpPath]) -> None:
    one, other = paths
    inbox = Inbox()
    one.start(Inbox())
    one.send([b"\x40" * 100] * 40, await one.resolve(other.addresses[0]))
    other.start(inbox)
    await inbox.until(40)
    sent, received = one.statistics(), other.statistics()
    assert (sent.datagrams_out, sent.bytes_out) == (40, 4000)
    assert (received.datagrams_in, received.bytes_in) == (40, 4000)
    assert sent.writes <= (1 if sent.segmented else 40)
    assert received.reads <= (40 if not received.coalesced else 1)


async def test_what_a_full_receive_buffer_loses_is_counted() -> None:
    one = UdpPath.bind("127.0.0.1:0")
    other = UdpPath.bind("127.0.0.1:0", socket_buffer=16_384)
    one.start(Inbox())
    other.start(Inbox())
    one.send([b"\x40" * 1200] * 200, await one.resolve(other.addresses[0]))
    if sys.platform == "linux":
        assert other.statistics().overruns > 0
    one.close()
    other.close()
    assert other.statistics().overruns == 0  # of a closed socket nothing is known


async def test_a_burst_is_bounded_by_the_buffer_and_goes_on_in_the_next_turn() -> None:
    one = UdpPath.bind("127.0.0.1:0", socket_buffer=65_536)
    other = UdpPath.bind("127.0.0.1:0")
    inbox = Inbox()
    one.start(Inbox())
    other.start(inbox)
    sent = [b"\x40" + index.to_bytes(2, "big") + bytes(997) for index in range(300)]
    one.send(sent, await one.resolve(other.addresses[0]))
    assert 0 < one.statistics().bytes_out <= 65_536 // 2 + 64 * 1024
    assert one.statistics().queued > 0
    await inbox.until(300)
    assert [data for data, _ in inbox.packets] == sent
    one.close()
    other.close()


async def test_a_wake_up_is_bounded(
    paths: tuple[UdpPath, UdpPath], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = paths
    inbox = Inbox()
    monkeypatch.setattr(udp, "MAX_DRAIN_BYTES", 10_000)
    one.start(Inbox())
    one.send(
        [bytes((0x40, index)) * 8192 for index in range(8)], await one.resolve(other.addresses[0])
    )
    other.start(inbox)
    await inbox.until(8)
    assert inbox.batches >= 2
    assert [data[1] for data, _ in inbox.packets] == list(range(8))


async def test_datagrams_are_not_fragmented(paths: tuple[UdpPath, UdpPath]) -> None:
    if sys.platform != "linux":
        pytest.skip("the option is Linux's")
    assert paths[0]._socket.getsockopt(socket.IPPROTO_IP, 10) == 3  # IP_MTU_DISCOVER, PROBE


async def test_a_path_bound_to_all_names_the_machines_addresses() -> None:
    path = UdpPath.bind("0.0.0.0:0")
    port = path.addresses[-1].rsplit(":", 1)[1]
    assert f"127.0.0.1:{port}" == path.addresses[-1]
    assert all(not each.startswith("0.0.0.0") for each in path.addresses)
    path.close()


async def test_loopback_takes_large_datagrams_and_others_are_unknown(
    paths: tuple[UdpPath, UdpPath],
) -> None:
    one, other = paths
    assert one.datagram_limit(await one.resolve(other.addresses[0])) == udp.LOOPBACK_DATAGRAM
    assert one.datagram_limit(await one.resolve("192.0.2.1:9")) is None


async def test_a_closed_path_drops(paths: tuple[UdpPath, UdpPath]) -> None:
    one, other = paths
    one.start(Inbox())
    virtual = await one.resolve(other.addresses[0])
    one.close()
    one.close()
    one.send([b"\x40"], virtual)
    assert one.counters["sent_nowhere"] == 1


def test_errors_are_path_errors() -> None:
    assert issubclass(PortInUseError, PathError)
    assert issubclass(AddressError, PathError)
