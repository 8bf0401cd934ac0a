"""What becomes of peers, as an endpoint tells it: states, pauses between dials, kept peers."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from lattica.config import LinkConfig
from lattica.errors import BackoffError, LinkLostError, UnreachableError
from lattica.link.endpoint import Endpoint
from lattica.link.interface import Links
from lattica.link.memory import MemoryLinks, MemoryNetwork
from lattica.link.supervision import PeerEvent, PeerState
from lattica.path.memory import Conditions, PacketNetwork
from lattica.virtual_loop import VirtualLoop
from tests.link.helpers import ALICE, BOB, Recorder, eventually, exchange, member, peer, two

pytestmark = pytest.mark.anyio
CONFIG = LinkConfig(connect_timeout=2.0, far_dead_after=1.8)
SLOW = LinkConfig(connect_timeout=1.0, backoff_base=30.0, backoff_max=60.0, backoff_patience=0.0)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Watch:
    """The events of one endpoint."""

    def __init__(self, links: Links) -> None:
        self.events: list[PeerEvent] = []
        self._changed = anyio.Event()
        links.watch(self._add)

    @property
    def states(self) -> list[str]:
        return [event.state.value for event in self.events]

    async def until(self, state: PeerState, timeout: float = 30.0) -> PeerEvent:
        """The newest event, once it is of `state`."""
        with anyio.fail_after(timeout):
            while not self.events or self.events[-1].state is not state:
                await self._changed.wait()
        return self.events[-1]

    def _add(self, event: PeerEvent) -> None:
        self.events.append(event)
        self._changed.set()
        self._changed = anyio.Event()


async def test_a_lost_peer_is_suspect_first_and_both_are_told_with_reasons() -> None:
    network = PacketNetwork(Conditions(latency=0.01))
    async with two(network, CONFIG) as (alice, bob):
        watch = Watch(alice.endpoint)
        await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        assert alice.endpoint.state(bob.id) is PeerState.UP
        network.silence("b:1")
        silent_since = anyio.current_time()
        suspect = await watch.until(PeerState.SUSPECT)
        assert alice.endpoint.find(bob.id) is not None  # its calls go on
        assert CONFIG.heartbeat < suspect.at - silent_since < CONFIG.dead_after
        assert "nothing was heard" in suspect.reason
        down = await watch.until(PeerState.DOWN)
        assert down.at - silent_since < 2.0
        assert isinstance(down.error, LinkLostError)
        assert watch.states == ["connecting", "up", "suspect", "down"]


async def test_a_suspect_that_answers_is_up_again() -> None:
    network = PacketNetwork(Conditions(latency=0.01))
    async with two(network, CONFIG) as (alice, bob):
        watch = Watch(alice.endpoint)
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        network.partition("a:1", "b:1")
        await watch.until(PeerState.SUSPECT)
        network.heal("a:1", "b:1")
        await watch.until(PeerState.UP)
        assert link.is_open
        await exchange(link, bob.to(alice), b"nothing was lost")


async def test_a_hint_of_the_network_makes_a_suspect_at_once() -> None:
    network = PacketNetwork(Conditions(latency=0.01))
    async with two(network, CONFIG) as (alice, bob):
        watch = Watch(alice.endpoint)
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        alice.endpoint.path_refused(link.virtual_address)  # type: ignore[attr-defined]
        assert alice.endpoint.state(bob.id) is PeerState.SUSPECT
        assert "nobody listens" in watch.events[-1].reason
        await watch.until(PeerState.UP)


async def test_a_dial_soon_after_failures_says_when_the_next_is_due() -> None:
    network = PacketNetwork()
    async with peer(ALICE, network.path("a"), config=SLOW) as alice:
        alice.endpoint.learn(BOB.peer_id, ["b:1"])
        with pytest.raises(UnreachableError):
            await alice.endpoint.connect(BOB.peer_id)
        before = anyio.current_time()
        with pytest.raises(BackoffError, match="the next is due in") as caught:
            await alice.endpoint.connect(BOB.peer_id)
        assert anyio.current_time() == before
        assert 0 < caught.value.retry_after <= 30.0
        await anyio.sleep(caught.value.retry_after)
        async with peer(BOB, network.path("b"), config=SLOW):
            assert (await alice.endpoint.connect(BOB.peer_id)).is_open


async def test_a_short_pause_is_waited_for() -> None:
    network = PacketNetwork()
    config = LinkConfig(connect_timeout=1.0, backoff_base=0.5, backoff_patience=0.5)
    async with peer(ALICE, network.path("a"), config=config) as alice:
        with pytest.raises(UnreachableError):
            await alice.endpoint.connect(BOB.peer_id, ["b:1"])
        async with peer(BOB, network.path("b"), config=config):
            assert (await alice.endpoint.connect(BOB.peer_id)).is_open


async def test_a_new_address_or_a_dial_by_the_peer_ends_the_pause() -> None:
    network = PacketNetwork()
    async with peer(ALICE, network.path("a"), config=SLOW) as alice:
        for address in ("b:1", "b:2"):
            with pytest.raises(UnreachableError):
                await alice.endpoint.connect(BOB.peer_id, [address])
        with pytest.raises(BackoffError):
            await alice.endpoint.connect(BOB.peer_id, ["b:1"])
        async with peer(BOB, network.path("b", 3), config=SLOW) as bob:
            link = await alice.endpoint.connect(BOB.peer_id, ["b:3"])
            assert link.is_open
        await alice.until_linked(bob, is_up=False)
        with pytest.raises(UnreachableError):
            await alice.endpoint.connect(BOB.peer_id)
        async with peer(BOB, network.path("b"), config=SLOW) as bob:
            await bob.endpoint.connect(alice.id, alice.endpoint.addresses)
            await alice.until_linked(bob)
        await alice.until_linked(bob, is_up=False)


async def test_a_kept_peer_is_linked_again_each_time_until_it_is_released() -> None:
    network = PacketNetwork(Conditions(latency=0.005))
    async with peer(ALICE, network.path("a"), config=CONFIG) as alice:
        watch = Watch(alice.endpoint)
        release = alice.endpoint.keep(BOB.peer_id)
        alice.endpoint.learn(BOB.peer_id, ["b:1"])
        for _ in range(3):
            async with peer(BOB, network.path("b"), config=CONFIG) as bob:
                await watch.until(PeerState.UP)
                await bob.until_linked(alice)
            await watch.until(PeerState.DOWN)
            await anyio.sleep(60)  # the pauses stay bounded
        before = len(watch.events)
        release()
        release()
        await anyio.sleep(60)
        assert len(watch.events) <= before + 1  # a dial that ran has failed
        async with peer(BOB, network.path("b"), config=CONFIG):
            await anyio.sleep(60)
            assert alice.endpoint.find(BOB.peer_id) is None


async def test_a_link_counts_what_it_carries(engine: str) -> None:
    network = PacketNetwork(Conditions(latency=0.02))
    async with two(network, CONFIG) as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        fresh = link.statistics()
        assert fresh.state == "open"
        assert fresh.path == "b:1"
        assert fresh.handshake == pytest.approx(0.08, abs=0.005)  # two round trips
        await bob.until_linked(alice)
        await exchange(link, bob.to(alice), bytes(100_000))
        one = link.statistics()
        assert one.engine == engine
        assert one.bytes_out - fresh.bytes_out > 100_000
        assert 0.039 <= one.rtt_min <= one.rtt < 0.1
        assert one.datagram >= 1200
        assert one.window > 10_000
        await anyio.sleep(1.0)
        theirs = bob.to(alice).link
        # Heartbeats may be under way.
        await eventually(lambda: theirs.statistics().packets_in == link.statistics().packets_out)
        await eventually(lambda: theirs.statistics().packets_out == link.statistics().packets_in)
        later, other = link.statistics(), theirs.statistics()
        assert (other.bytes_in, other.packets_in) == (later.bytes_out, later.packets_out)
        assert (other.bytes_out, other.packets_out) == (later.bytes_in, later.packets_in)
        assert later.unsent == later.in_flight == later.streams == 0
        assert later.age == pytest.approx(one.age + 1.0, abs=0.1)
        assert later.silence < 1.0
        held = link.open_stream(unidirectional=False)
        link.write(held, b"x")
        await anyio.sleep(0.1)
        assert link.statistics().streams == bob.to(alice).link.statistics().streams == 1
        link.close()
        assert link.statistics().state == "closed"


async def test_links_in_memory_tell_the_same() -> None:
    network = MemoryNetwork(latency=0.01)
    alice = MemoryLinks(network, ALICE, member(ALICE))
    bob = MemoryLinks(network, BOB, member(BOB))
    for each in (alice, bob):
        each.set_acceptor(Recorder)
    watch, other = Watch(alice), Watch(bob)
    link = await alice.connect(bob.local)
    link.write(link.open_stream(unidirectional=True), b"12345")
    link.write(link.open_stream(unidirectional=False), b"678", end=True)
    await anyio.sleep(0.1)
    theirs = bob.find(alice.local)
    assert theirs is not None
    assert link.statistics().bytes_out == theirs.statistics().bytes_in == 8
    assert link.statistics().streams == theirs.statistics().streams == 2
    network.partition(alice.local, bob.local)
    with pytest.raises(UnreachableError):
        await alice.connect(bob.local)
    assert watch.states == ["connecting", "up", "down", "connecting", "down"]
    assert other.states == ["up", "down"]
    assert alice.state(bob.local) is PeerState.DOWN


def test_an_endpoint_is_what_the_layers_above_expect() -> None:
    links: type[Links] = Endpoint
    assert links is Endpoint
