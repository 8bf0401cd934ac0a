"""Links to other machines: cheap while nobody waits, watched while somebody does, hard to lose."""

from __future__ import annotations

import asyncio

import pytest

from lattica.config import LinkConfig
from lattica.errors import DeadlineError
from lattica.link.supervision import PeerEvent, PeerState
from lattica.path.memory import Conditions
from tests.faults.baseline import settle
from tests.faults.stack import Peer, Stack
from tests.faults.workload import SERVICE, Caller, Kind, Ledger, add, echo, run, wait

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("engine")]

FAR = Conditions(latency=0.02)
HEADERS = 28  # bytes of IPv4 and UDP with each packet
CONFIG = LinkConfig()


def sent(peer: Peer) -> int:
    """Bytes that have left the peer's machine, whatever for."""
    path = peer.endpoint.path.statistics()
    return path.bytes_out + HEADERS * path.datagrams_out


async def linked(here: Peer, there: Peer) -> Ledger:
    """A stub for a service of `there`, over a link that is up."""
    there.rpc.register(SERVICE, Ledger())
    stub = here.client(there, Ledger, SERVICE)
    assert await stub.add(0, 1) == 2
    return stub


def states(here: Peer, there: Peer) -> list[PeerEvent]:
    """What `here` is told of `there` from now on."""
    events: list[PeerEvent] = []
    here.endpoint.watch(
        lambda event: events.append(event) if event.peer == there.rpc.local else None
    )
    return events


async def test_twenty_idle_links_cost_less_than_200_bytes_a_second() -> None:
    others = [f"p{index}" for index in range(20)]
    async with Stack("hub", *others, conditions=FAR) as stack:
        hub = stack["hub"]
        for name in others:
            await linked(hub, stack[name])
        await asyncio.sleep(60)
        before = sent(hub), sum(sent(stack[name]) for name in others)
        await asyncio.sleep(1200)
        after = sent(hub), sum(sent(stack[name]) for name in others)
        assert len(hub.endpoint.current()) == 20
        for begun, ended in zip(before, after, strict=True):
            assert (ended - begun) / 1200 < 150


@pytest.mark.parametrize("idle", [0.0, 5.0, 11.5, 30.0])
async def test_whoever_waits_for_a_lost_peer_is_told_within_two_seconds(idle: float) -> None:
    async with Stack("a", "b", conditions=FAR) as stack:
        here, there = stack["a"], stack["b"]
        stub = await linked(here, there)
        await asyncio.sleep(idle)
        loop = asyncio.get_running_loop()
        events = states(here, there)
        stack.network.silence("b:1")
        began = loop.time()
        call = asyncio.ensure_future(here.client(there, Ledger, SERVICE, timeout=6.0).add(1, 1))  # type: ignore[arg-type]
        await asyncio.sleep(2.0)
        assert [event.state for event in events] == [PeerState.SUSPECT]
        assert events[0].at - began < 2.0
        assert not call.done(), "it may still be answered"
        with pytest.raises(DeadlineError):
            await call
        stack.network.unsilence("b:1")
        assert await stub.add(2, 1) == 2
        assert [event.state for event in events] == [PeerState.SUSPECT, PeerState.UP]


async def test_a_call_under_way_is_watched_from_both_ends() -> None:
    async with Stack("a", "b", conditions=FAR) as stack:
        here, there = stack["a"], stack["b"]
        stub = await linked(here, there)
        call: asyncio.Task[int] = asyncio.ensure_future(stub.wait(1, 20.0))  # type: ignore[arg-type]
        await asyncio.sleep(10)
        assert not call.done()
        told = [states(here, there), states(there, here)]
        stack.network.partition("a:1", "b:1")
        await asyncio.sleep(2.0)
        assert [[event.state for event in events] for events in told] == [[PeerState.SUSPECT]] * 2
        stack.network.heal("a:1", "b:1")
        assert await call == 1


@pytest.mark.parametrize("seed", range(5))
async def test_ten_seconds_of_darkness_lose_no_call(seed: int) -> None:
    async with Stack("a", "b", conditions=FAR, seed=seed) as stack:
        here, there = stack["a"], stack["b"]
        ledger = Ledger()
        there.rpc.register(SERVICE, ledger)
        caller = Caller(here, there, ledger, timeout=60.0)
        await caller.make(add)
        link = here.endpoint.current()[0]
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run(caller, 66, spread=12.0, seed=seed))
            await asyncio.sleep(0.3 * seed)
            stack.network.blackout("a:1", "b:1", 10.0)
            dark_until = loop.time() + 10.0
            await asyncio.sleep(9.9)
            probe = tasks.create_task(caller.make(add))
            await probe
            assert loop.time() - dark_until < 2.5, "it is noticed soon that the path is back"
        found = caller.check()
        assert set(found) <= {Kind.VALUE, Kind.REMOTE, Kind.OWN, Kind.CANCELLED}
        assert here.endpoint.current() == (link,)
        await settle(here, there)


async def test_a_peer_that_stays_away_is_given_up() -> None:
    async with Stack("a", "b", conditions=FAR) as stack:
        here, there = stack["a"], stack["b"]
        ledger = Ledger()
        there.rpc.register(SERVICE, ledger)
        caller = Caller(here, there, ledger, timeout=60.0)
        await caller.make(echo)
        loop = asyncio.get_running_loop()
        stack.network.silence("b:1")
        began = loop.time()
        await caller.make(wait)
        assert caller.outcomes[-1].kind is Kind.MAY_HAVE_RUN
        assert CONFIG.far_dead_after - 1.0 < loop.time() - began < CONFIG.far_dead_after + 1.0
        assert not here.endpoint.current()
