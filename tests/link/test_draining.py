"""A graceful end: what is in flight finishes, nothing new begins, the other end knows."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from lattica.config import LinkConfig
from lattica.errors import LinkLostError
from lattica.link.interface import Link
from lattica.link.memory import MemoryLinks, MemoryNetwork
from lattica.link.quic_link import QuicLink
from lattica.link.supervision import PeerState
from lattica.path.memory import Conditions, PacketNetwork
from lattica.virtual_loop import VirtualLoop
from tests.link.helpers import ALICE, BOB, Peer, Recorder, member, peer, two

pytestmark = pytest.mark.anyio
CONFIG = LinkConfig(far_dead_after=1.8)
LATENCY = 0.05


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Worker(Recorder):
    """A handler that can have something in flight."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self.is_idle = True


def workers(each: Peer) -> list[Worker]:
    """Have the peer's handlers be workers; they are listed as they come."""
    found: list[Worker] = []

    def accept(link: Link) -> Worker:
        found.append(Worker(link))
        return found[-1]

    each.endpoint.set_acceptor(accept)
    return found


async def test_written_data_arrives_before_the_close() -> None:
    network = PacketNetwork(Conditions(latency=LATENCY, loss=0.05), seed=1)
    async with two(network, CONFIG) as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        theirs = bob.to(alice)
        stream_id = link.open_stream(unidirectional=True)
        link.write(stream_id, bytes(500_000), end=True)  # many times the congestion window
        assert await link.drain(30.0, "moving house")
        assert len(theirs.data[stream_id]) == 500_000
        assert theirs.ended == [stream_id]
        assert not link.is_open
        await theirs.until(lambda: bool(theirs.lost), timeout=1.0)
        assert "moving house" in str(theirs.lost[0])


async def test_an_endpoint_drains_when_it_ends() -> None:
    network = PacketNetwork(Conditions(latency=LATENCY))
    async with peer(BOB, network.path("b"), config=CONFIG) as bob:
        async with peer(ALICE, network.path("a"), config=CONFIG) as alice:
            link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
            stream_id = link.open_stream(unidirectional=True)
            link.write(stream_id, bytes(200_000), end=True)
        recorder = bob.handlers[0]
        assert len(recorder.data[stream_id]) == 200_000
        assert recorder.ended == [stream_id]


async def test_both_ends_stop_offering_the_link_while_work_in_flight_goes_on() -> None:
    async with two(PacketNetwork(Conditions(latency=LATENCY)), CONFIG) as (alice, bob):
        mine, theirs = workers(alice), workers(bob)
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        mine[0].is_idle = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(link.drain, 60.0, "moving house")
            await bob.until_linked(alice, is_up=False, timeout=1.0)
            assert theirs[0].link.is_open
            assert theirs[0].link.is_draining
            assert link.is_draining
            for each, other in ((alice, bob), (bob, alice)):
                assert each.endpoint.find(other.id) is None
                assert each.endpoint.current() == ()
                assert each.endpoint.state(other.id) is PeerState.DOWN
                assert each.changes[-1] == (other.id, False)
            assert link.statistics().state == "draining"
            await anyio.sleep(20.0)  # much longer than `dead_after`
            answer = theirs[0].link.open_stream(unidirectional=True)
            theirs[0].link.write(answer, b"the result", end=True)
            await mine[0].until(lambda: mine[0].ended == [answer])
            mine[0].is_idle = True
            link.write(link.open_stream(unidirectional=True), b"thanks", end=True)
        assert not link.is_open
        await theirs[0].until(lambda: bool(theirs[0].lost))
        assert theirs[0].data[2 if link.is_dialer else 3] == b"thanks"
        assert [len(each.lost) for each in (mine[0], theirs[0])] == [1, 1]
        assert not alice.endpoint._links
        assert alice.changes == [(bob.id, True), (bob.id, False)]


async def test_a_new_link_can_be_made_while_the_old_one_drains() -> None:
    async with two(PacketNetwork(Conditions(latency=LATENCY)), CONFIG) as (alice, bob):
        mine = workers(alice)
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        mine[0].is_idle = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(link.drain, 30.0)
            await bob.until_linked(alice, is_up=False)
            fresh = await alice.endpoint.connect(bob.id)
            assert fresh is not link
            assert link.is_open
        assert not link.is_open
        assert fresh.is_open
        assert alice.endpoint.find(bob.id) is fresh


async def test_work_that_does_not_end_is_waited_for_no_longer_than_asked() -> None:
    async with two(PacketNetwork(Conditions(latency=LATENCY)), CONFIG) as (alice, bob):
        mine = workers(alice)
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        mine[0].is_idle = False
        began = anyio.current_time()
        assert not await link.drain(2.0)  # said in one breath with the end of the proof
        await bob.handlers[0].until(lambda: bool(bob.handlers[0].lost))
        assert "going away" in str(bob.handlers[0].lost[0])
        assert anyio.current_time() - began == pytest.approx(2.0, abs=0.1)
        assert not link.is_open


async def test_an_idle_link_is_closed_at_once() -> None:
    async with two(PacketNetwork(Conditions(latency=LATENCY)), CONFIG) as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await anyio.sleep(5)
        began = anyio.current_time()
        assert await link.drain(60.0, "moving house")
        assert anyio.current_time() == began
        await bob.handlers[0].until(lambda: bool(bob.handlers[0].lost), timeout=1.0)
        assert "moving house" in str(bob.handlers[0].lost[0])


async def test_a_drain_ends_with_its_link() -> None:
    network = PacketNetwork(Conditions(latency=LATENCY))
    async with two(network, CONFIG) as (alice, bob):
        mine = workers(alice)
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        mine[0].is_idle = False
        network.silence("b:1")
        began = anyio.current_time()
        assert not await link.drain(60.0)
        assert anyio.current_time() - began < 2.0


async def test_a_draining_endpoint_makes_no_new_links() -> None:
    network = PacketNetwork(Conditions(latency=LATENCY))
    async with two(network, CONFIG) as (alice, bob):
        mine = workers(alice)
        await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        mine[0].is_idle = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(alice.endpoint.drain, 5.0)
            await bob.until_linked(alice, is_up=False)
            with pytest.raises(LinkLostError):
                await alice.endpoint.connect(bob.id)
        assert len(mine) == 1


async def test_a_link_in_memory_drains_alike() -> None:
    network = MemoryNetwork(latency=LATENCY)
    alice = MemoryLinks(network, ALICE, member(ALICE))
    bob = MemoryLinks(network, BOB, member(BOB))
    handlers: list[Worker] = []

    def accept(link: Link) -> Worker:
        handlers.append(Worker(link))
        return handlers[-1]

    alice.set_acceptor(accept)
    bob.set_acceptor(accept)
    link = await alice.connect(bob.local)
    for each in handlers:
        each.is_idle = each.link is not link
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(link.drain, 60.0)
        await anyio.sleep(1.0)
        assert alice.find(bob.local) is bob.find(alice.local) is None
        assert link.is_open
        assert link.statistics().state == "draining"
        for each in handlers:
            each.is_idle = True
        link.write(link.open_stream(unidirectional=True), b"thanks", end=True)
    assert not link.is_open
    await anyio.sleep(1.0)
    assert [len(each.lost) for each in handlers] == [1, 1]


async def test_a_link_that_is_left_closes_by_itself_when_its_work_is_done() -> None:
    async with two(PacketNetwork(Conditions(latency=LATENCY)), CONFIG) as (alice, bob):
        mine = workers(alice)
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        mine[0].is_idle = False
        assert isinstance(link, QuicLink)
        link.leaving.begin(60.0, "moving house")
        await bob.until_linked(alice, is_up=False, timeout=1.0)
        await anyio.sleep(5.0)
        assert link.is_open
        mine[0].is_idle = True
        link.write(link.open_stream(unidirectional=True), b"thanks", end=True)
        await mine[0].until(lambda: bool(mine[0].lost), timeout=1.0)
        await bob.handlers[0].until(lambda: bool(bob.handlers[0].lost), timeout=1.0)
        assert "moving house" in str(bob.handlers[0].lost[0])


async def test_a_link_that_is_left_with_endless_work_closes_at_its_deadline() -> None:
    async with two(PacketNetwork(Conditions(latency=LATENCY)), CONFIG) as (alice, bob):
        mine = workers(alice)
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        mine[0].is_idle = False
        assert isinstance(link, QuicLink)
        began = anyio.current_time()
        link.leaving.begin(10.0, "moving house")
        await mine[0].until(lambda: bool(mine[0].lost), timeout=60.0)
        assert anyio.current_time() - began == pytest.approx(10.0, abs=0.1)
