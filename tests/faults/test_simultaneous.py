"""Two peers dial each other, across paths of any length: one link stays, and no call is lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from lattica.config import LinkConfig
from lattica.link.supervision import PeerState
from lattica.path.memory import Conditions
from tests.faults.baseline import settle
from tests.faults.stack import Peer, Stack
from tests.faults.workload import SERVICE, Caller, Kind, Ledger, add, count, echo, wait

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("engine")]

Steps = tuple[Callable[[Ledger, int], Awaitable[None]], ...]
STEPS: Steps = (add, echo, wait, count)
# Where packets are lost or overtake each other, qh3 may end a link over a stream that is
# over (see `engine_qh3`); control streams never are.
ON_CONTROL = (add, wait)
CALLS = 12  # from each end
# A dial takes four times the latency, here up to 4 s, and now and then a lost packet's time.
CONFIG = LinkConfig(connect_timeout=20.0, handshake_timeout=20.0)


def by_rank(stack: Stack) -> tuple[Peer, Peer]:
    """The lower PeerId, whose dial wins if it can, and the higher."""
    one, other = sorted((stack["a"], stack["b"]), key=lambda each: each.rpc.local.raw)
    return one, other


async def dial_each_other(low: Peer, high: Peer, gap: float, steps: Steps = STEPS) -> None:
    """The higher peer calls `gap` seconds before the lower one, or after it where negative.

    Raises:
        AssertionError: a call did not run, ran twice, or did not return its value.
    """
    ledgers = {each.name: Ledger() for each in (low, high)}
    for each in (low, high):
        each.rpc.register(SERVICE, ledgers[each.name])
    early = Caller(high, low, ledgers[low.name], timeout=60.0)
    late = Caller(low, high, ledgers[high.name], timeout=60.0)

    async def begin(caller: Caller, delay: float) -> None:
        await asyncio.sleep(delay)
        async with asyncio.TaskGroup() as tasks:
            for index in range(CALLS):
                tasks.create_task(caller.make(steps[index % len(steps)]))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(begin(early, max(0.0, -gap)))
        tasks.create_task(begin(late, max(0.0, gap)))
    for caller in (early, late):
        assert caller.check() == Counter({Kind.VALUE: CALLS})


async def stand_with_one_link(*peers: Peer, within: float) -> None:
    """One link is left, the same at both ends, and it works both ways.

    Raises:
        AssertionError: it is not so after `within` seconds.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while any(len(each.endpoint._links) != 1 for each in peers):  # those that lost as well
        assert loop.time() < end, [each.endpoint.current() for each in peers]
        await asyncio.sleep(0.05)
    one, other = (each.endpoint.current()[0] for each in peers)
    assert one.is_dialer is not other.is_dialer
    await settle(*peers)
    here, there = peers
    assert here.endpoint.state(there.rpc.local) is PeerState.UP
    assert await here.rpc.client(there.rpc.local, Ledger, SERVICE).add(10_000, 1) == 2
    assert await there.rpc.client(here.rpc.local, Ledger, SERVICE).add(10_001, 1) == 2


@pytest.mark.parametrize("gap", [0.0, 0.4, 0.8, 1.2, 1.6, 2.0, 3.0, -0.4, -1.2])
async def test_on_a_far_path_no_call_is_lost_whoever_dials_first(gap: float) -> None:
    conditions = Conditions(latency=0.6)
    async with Stack("a", "b", conditions=conditions, link=CONFIG) as stack:
        low, high = by_rank(stack)
        await dial_each_other(low, high, gap)
        await stand_with_one_link(low, high, within=10.0)


async def test_the_lower_peers_dial_wins_where_both_begin_at_once() -> None:
    async with Stack("a", "b", conditions=Conditions(latency=0.05), link=CONFIG) as stack:
        low, high = by_rank(stack)
        made: list[bool] = []
        high.endpoint.subscribe(lambda link, is_up: made.append(link.is_dialer))
        await dial_each_other(low, high, 0.0)
        assert made == [False], "the dial that lost never became a link"


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("loss", [0.0, 0.03])
async def test_nor_at_any_distance_and_with_any_gap(seed: int, loss: float) -> None:
    chance = random.Random(seed)
    latency = chance.choice([0.0, 0.001, 0.02, 0.1, 0.3, 0.6, 1.0]) * chance.uniform(0.5, 1.0)
    gap = chance.uniform(-1.0, 1.0) * (6 * latency + 0.01)
    conditions = Conditions(latency=latency, jitter=latency / 10, loss=loss)
    async with Stack("a", "b", conditions=conditions, link=CONFIG, seed=seed) as stack:
        low, high = by_rank(stack)
        await dial_each_other(low, high, gap, ON_CONTROL)
        await stand_with_one_link(low, high, within=30.0)
