"""Links find the datagram size of their path, each way, and follow it when it changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest

from lattica.config import LinkConfig
from lattica.path.interface import PROBE, PROBE_REPLY, VirtualAddress
from lattica.path.memory import Conditions, PacketNetwork
from lattica.path.probes import OVERHEAD, ProbeKeys, Prober, tag_of
from lattica.path.udp import LOOPBACK_DATAGRAM, UdpPath
from lattica.virtual_loop import VirtualLoop
from tests.link.helpers import ALICE, BOB, QUICK, Peer, eventually, exchange, peer, two

pytestmark = pytest.mark.anyio

# qh3 cannot enlarge its datagrams: what it starts with has to do, or less.
GROWING = pytest.mark.parametrize("engine", ["aioquic"], indirect=True)
EACH = pytest.mark.parametrize("engine", ["aioquic", "qh3"], indirect=True)

ONE_WAY = 0.02  # seconds
A, B = "a:1", "b:1"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Tap(PacketNetwork):
    """Keeps the probes and replies that are sent."""

    def __init__(self, conditions: Conditions) -> None:
        super().__init__(conditions)
        self.probes: list[tuple[bytes, str, str]] = []

    def carry(self, datagram: bytes, source: str, target: str) -> None:
        if datagram and datagram[0] in (PROBE, PROBE_REPLY):
            self.probes.append((datagram, source, target))
        super().carry(datagram, source, target)

    def of(self, kind: int, source: str) -> list[bytes]:
        return [each for each, origin, _ in self.probes if each[0] == kind and origin == source]


def size(one: Peer, other: Peer) -> int:
    link = one.endpoint.find(other.id)
    assert link is not None
    return link.statistics().datagram


@asynccontextmanager
async def linked(
    network: PacketNetwork, config: LinkConfig = QUICK
) -> AsyncIterator[tuple[Peer, Peer]]:
    async with two(network, config) as (alice, bob):
        await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        yield alice, bob


def network(mtu: int = 1472, **more: float) -> Tap:
    return Tap(Conditions(latency=ONE_WAY, mtu=mtu, **more))


@GROWING
async def test_each_way_has_its_own_size_within_a_few_round_trips() -> None:
    net = network()
    net.shape(A, B, Conditions(latency=ONE_WAY, mtu=8_952))
    net.shape(B, A, Conditions(latency=ONE_WAY, mtu=1_452))
    async with linked(net) as (alice, bob):
        await anyio.sleep(4 * 2 * ONE_WAY)
        assert size(alice, bob) == 8_952
        assert size(bob, alice) == 1_452
        await exchange(alice.to(bob).link, bob.to(alice), bytes(500_000))
        await exchange(bob.to(alice).link, alice.to(bob), bytes(500_000))


@EACH
async def test_the_least_that_quic_needs_is_enough_for_a_link() -> None:
    config = msgspec.structs.replace(QUICK, connect_timeout=5.0, handshake_timeout=5.0)
    async with linked(network(mtu=1200), config) as (alice, bob):
        await exchange(alice.to(bob).link, bob.to(alice), bytes(100_000))
        await anyio.sleep(5)
        assert size(alice, bob) == size(bob, alice) == 1200


@EACH
async def test_a_limit_of_the_users_is_kept() -> None:
    config = msgspec.structs.replace(QUICK, datagram=1300, max_datagram=1300)
    async with linked(network(mtu=9_000), config) as (alice, bob):
        await anyio.sleep(5)
        assert size(alice, bob) == 1300


@pytest.mark.parametrize("shrunk", [1200, 1452])
@GROWING
async def test_a_path_that_shrinks_in_mid_transfer_costs_neither_link_nor_bytes(
    shrunk: int,
) -> None:
    net = network(mtu=8_952, rate=4_000_000)
    async with linked(net) as (alice, bob):
        link, receiver = alice.to(bob).link, bob.to(alice)
        await anyio.sleep(0.5)
        assert size(alice, bob) == 8_952
        payload = bytes(range(256)) * 40_000
        stream_id = link.open_stream(unidirectional=True)
        link.write(stream_id, payload, end=True)
        await receiver.until(lambda: len(receiver.data[stream_id]) > 2_000_000)
        net.conditions = Conditions(latency=ONE_WAY, mtu=shrunk, rate=4_000_000)
        started = anyio.current_time()
        await eventually(lambda: size(alice, bob) <= shrunk)
        assert anyio.current_time() - started < 2.0
        await receiver.until(lambda: stream_id in receiver.ended, timeout=60)
        assert receiver.data[stream_id] == payload
        assert link.is_open
        assert alice.endpoint.counters["datagram_shrunk"] == 1
        await anyio.sleep(3)
        assert size(alice, bob) == shrunk


@pytest.mark.parametrize("after", [0.5, 0.7, 0.9, 1.1, 1.3, 1.5])
@GROWING
async def test_a_path_that_shrinks_is_noticed_by_what_is_lost_not_by_the_clock(
    after: float,
) -> None:
    net = network(mtu=4_000, rate=4_000_000)
    async with linked(net) as (alice, bob):
        await anyio.sleep(1)
        link = alice.to(bob).link
        link.write(link.open_stream(unidirectional=True), bytes(20_000_000), end=True)
        await anyio.sleep(after)  # confirmations of the size leave once a second
        net.conditions = Conditions(latency=ONE_WAY, mtu=1452, rate=4_000_000)
        with anyio.fail_after(0.8):
            while size(alice, bob) > 1452:
                await anyio.sleep(0.01)


@GROWING
async def test_losses_by_chance_do_not_make_a_size_suspect() -> None:
    net = network(mtu=4_000, rate=4_000_000, loss=0.02)
    async with linked(net) as (alice, bob):
        await anyio.sleep(2)
        assert size(alice, bob) == 4_000
        net.probes.clear()
        await exchange(alice.to(bob).link, bob.to(alice), bytes(8_000_000))
        large = [each for each in net.of(PROBE, A) if len(each) == 4_000]
        assert len(large) < 15  # about one a second
        assert alice.endpoint.counters["datagram_shrunk"] == 0


@GROWING
async def test_a_blackout_leaves_the_size_as_it_is() -> None:
    net = network(mtu=4_000)
    config = msgspec.structs.replace(QUICK, dead_after=5.0)
    async with linked(net, config) as (alice, bob):
        await anyio.sleep(1)
        link, receiver = alice.to(bob).link, bob.to(alice)
        net.blackout(A, B, 2.0)
        await exchange(link, receiver, bytes(300_000))
        assert size(alice, bob) == 4_000
        assert alice.endpoint.counters["datagram_shrunk"] == 0


@EACH
async def test_an_idle_link_sends_no_large_probes_and_few_small_ones() -> None:
    net = network(mtu=1472)
    async with linked(net):
        await anyio.sleep(5)
        net.probes.clear()
        await anyio.sleep(120)
        # One and its reply after each of QUIC's pings, which leave every 20 s.
        assert len(net.probes) <= 2 * 2 * 120 / 20
        assert {len(datagram) for datagram, _, _ in net.probes} <= {OVERHEAD}


@EACH
async def test_a_used_link_spends_little_on_probes() -> None:
    net = network(mtu=1472, rate=1_000_000)
    async with linked(net) as (alice, bob):
        await anyio.sleep(5)
        net.probes.clear()
        await exchange(alice.to(bob).link, bob.to(alice), bytes(5_000_000))
        spent = sum(len(datagram) for datagram, _, _ in net.probes)
        assert 0 < spent < 0.01 * 5_000_000


class Attacker:
    """Hears everything, may send anything, has no keys."""

    def __init__(self, net: Tap) -> None:
        self.net = net
        self.heard: list[bytes] = []
        self.path = net.path("e")
        self.path.start(self)

    def packets_received(self, packets: object) -> None: ...

    def probes_received(self, probes: list[tuple[bytes, VirtualAddress]]) -> None:
        self.heard += [datagram for datagram, _ in probes]

    def path_refused(self, address: object) -> None: ...

    def path_too_big(self, address: object, size: int) -> None: ...

    async def send(self, datagrams: list[bytes], target: str) -> None:
        self.path.send(datagrams, await self.path.resolve(target))
        await anyio.sleep(1)


def _replayed(net: Tap) -> list[bytes]:
    passed = [each for each in net.of(PROBE, A) if len(each) <= 1472]
    return passed * 3 + net.of(PROBE_REPLY, A) * 3


def _forged(net: Tap) -> list[bytes]:
    tag = tag_of(net.of(PROBE, A)[0])
    keys = ProbeKeys(tag, bytes(32), bytes(32))
    forger = Prober(keys, Counter())
    return [forger.probe(each)[1] for each in (OVERHEAD, 1200, 1472, 1472)]


def _changed(net: Tap) -> list[bytes]:
    """Another sequence number, another size, another kind."""
    probe = net.of(PROBE, A)[0]
    return [
        probe[:16] + bytes((probe[16] ^ 0x40,)) + probe[17:],
        probe[:17] + b"\x00\x40" + probe[19:],
        bytes((PROBE_REPLY,)) + probe[1:],
        probe[:OVERHEAD],
    ]


def _unkeyed(net: Tap) -> list[bytes]:
    return [bytes((PROBE,)) + bytes(1199), bytes((PROBE_REPLY,)) + bytes(40), bytes((PROBE,))]


@pytest.mark.parametrize(
    ("make", "reasons"),
    [
        (_replayed, {"probe:replayed"}),
        (_forged, {"probe:forged"}),
        (_changed, {"probe:forged", "probe:replayed", "probe:cut"}),
        (_unkeyed, {"probe:unkeyed"}),
    ],
)
@EACH
async def test_what_an_attacker_sends_is_counted_unanswered_and_changes_nothing(
    make: Callable[[Tap], list[bytes]], reasons: set[str]
) -> None:
    net = network(mtu=1472)
    async with linked(net) as (alice, bob):
        await anyio.sleep(5)
        attacker = Attacker(net)
        datagrams, before = make(net), (size(alice, bob), size(bob, alice))
        assert datagrams
        await attacker.send(datagrams, B)
        counters = bob.endpoint.counters
        dropped = {name: count for name, count in counters.items() if name.startswith("probe:")}
        assert sum(dropped.values()) == len(datagrams)
        assert set(dropped) <= reasons
        assert attacker.heard == []
        assert (size(alice, bob), size(bob, alice)) == before
        await exchange(alice.to(bob).link, bob.to(alice), bytes(100_000))


@EACH
async def test_an_answer_is_smaller_than_its_probe() -> None:
    net = network(mtu=16_384)
    async with linked(net):
        await anyio.sleep(5)
        for source, target in ((A, B), (B, A)):
            probes, replies = net.of(PROBE, source), net.of(PROBE_REPLY, target)
            assert 0 < len(replies) <= len(probes)
            assert max(map(len, replies)) < min(map(len, probes))


@EACH
async def test_an_ended_link_forgets_its_keys() -> None:
    net = network()
    async with linked(net) as (alice, bob):
        await anyio.sleep(1)
        probe = net.of(PROBE, A)[0]
        alice.to(bob).link.close()
        await bob.until_linked(alice, False)
        await Attacker(net).send([probe], B)
        assert bob.endpoint.counters["probe:unkeyed"] == 1


class TestRealSockets:
    """On the machine's own clock and loopback interface."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @EACH
    async def test_loopback_starts_large_and_confirms_it(self) -> None:
        async with (
            peer(ALICE, UdpPath.bind("127.0.0.1:0"), config=LinkConfig()) as alice,
            peer(BOB, UdpPath.bind("127.0.0.1:0"), config=LinkConfig()) as bob,
        ):
            await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
            await bob.until_linked(alice)
            assert size(alice, bob) == size(bob, alice) == LOOPBACK_DATAGRAM
            await exchange(alice.to(bob).link, bob.to(alice), bytes(3_000_000))
            await anyio.sleep(0.3)
            assert size(alice, bob) == LOOPBACK_DATAGRAM
            assert alice.endpoint.counters["datagram_shrunk"] == 0

    @GROWING
    async def test_a_small_start_grows(self) -> None:
        config = LinkConfig(datagram=1200)
        ends = [UdpPath.bind("127.0.0.1:0") for _ in range(2)]
        for path in ends:
            path.datagram_limit = lambda address: None  # type: ignore[method-assign]
        async with (
            peer(ALICE, ends[0], config=config) as alice,
            peer(BOB, ends[1], config=config) as bob,
        ):
            await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
            await bob.until_linked(alice)
            await eventually(lambda: size(alice, bob) == size(bob, alice) == LOOPBACK_DATAGRAM)
