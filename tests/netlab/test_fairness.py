"""A relay on the real lab that has more to forward than it may: whose frames pass?"""

from __future__ import annotations

import itertools
import os
import statistics

import anyio
import pytest

from lattica.config import Config, RelayConfig
from lattica.path.interface import QUIC_FIXED_BIT
from lattica.reach.forwarding import OVER_RATE
from lattica.reach.sessions import RelayStats, Traffic
from lattica.rpc import Buffer
from tests.netlab.kinds import SYMMETRIC_RANDOM
from tests.netlab.reach_peers import RealPeer, real_crowd
from tests.reach.peers import until
from tests.reach.test_matrix import is_relayed

pytestmark = [pytest.mark.anyio, pytest.mark.netlab]
AT_ONCE = 8  # dials
LIMITS = RelayConfig(rate=1.5e6, rate_per_peer=1.5e6, burst=200_000, min_burst=8_000)
GREED = 2.0  # times all that the relay may forward
DATAGRAM = 1180  # bytes
TICK = 0.01  # seconds
LONG = 5.0  # seconds
CALL_EVERY = 1.0  # seconds, of each modest pair
BODY = Buffer(bytes(800))


@pytest.mark.parametrize("count", [7, pytest.param(15, marks=pytest.mark.slow)])
@pytest.mark.timeout(120)
async def test_a_greedy_pair_takes_only_what_the_others_leave(count: int) -> None:
    """It keeps to no congestion control; no frame of anybody else is dropped for it.

    Each peer has a session to each other: 21, or 105.
    """
    kinds = [SYMMETRIC_RANDOM] * count
    async with real_crowd(kinds, seed=4, relays=1, config=Config(relay=LIMITS)) as (peers, relays):
        (relay,) = relays
        await until(lambda: all(each.reach.relays for each in peers), 30.0)
        pairs = list(itertools.combinations(peers, 2))
        room = anyio.CapacityLimiter(AT_ONCE)

        async def dial(a: RealPeer, b: RealPeer) -> None:
            async with room:
                await a.dial(b)

        async with anyio.create_task_group() as tasks:
            for a, b in pairs:
                tasks.start_soon(dial, a, b)
        assert all(is_relayed(a, b) for a, b in pairs)
        (one, other), *modest = pairs
        took: list[float] = []

        async def call(a: RealPeer, b: RealPeer, after: float) -> None:
            await anyio.sleep(after)
            for _ in range(int(LONG / CALL_EVERY)):
                began = anyio.current_time()
                assert await a.stub(b).ping(BODY) == BODY
                took.append(anyio.current_time() - began)
                await anyio.sleep(max(0.0, began + CALL_EVERY - anyio.current_time()))

        async def flood() -> None:
            address = one.link(other).current_address
            garbage = bytes((QUIC_FIXED_BIT,)) + os.urandom(DATAGRAM - 1)
            sent, began = 0.0, anyio.current_time()
            while anyio.current_time() < began + LONG + CALL_EVERY:
                due = GREED * LIMITS.rate * (anyio.current_time() - began)
                count = int((due - sent) / DATAGRAM)
                one.path.relay.send([garbage] * count, address)
                sent += count * DATAGRAM
                await anyio.sleep(TICK)

        before, began = relay.reach.forwarder.statistics(), anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood)
            for number, (a, b) in enumerate(modest):
                tasks.start_soon(call, a, b, CALL_EVERY * number / len(modest))
        after, lasted = relay.reach.forwarder.statistics(), anyio.current_time() - began

    greedy = {one.id, other.id}

    def others(told: RelayStats) -> list[Traffic]:
        sessions = [each for each in told.sessions if {each.source, each.target} != greedy]
        return [way for each in sessions for way in (each.up, each.down)]

    passed = after.bytes_out - before.bytes_out
    used = sum(each.bytes for each in others(after)) - sum(each.bytes for each in others(before))
    lost = sum(each.dropped for each in others(after)) - sum(
        each.dropped for each in others(before)
    )
    too_many = after.dropped.get(OVER_RATE, 0) - before.dropped.get(OVER_RATE, 0)
    print(
        f"{len(after.sessions)} sessions, {passed / lasted / 1e6:.2f} MB/s of"
        f" {LIMITS.rate / 1e6:.2f}, of it others {used / lasted / 1e6:.2f}; {len(took)} calls,"
        f" median {statistics.median(took) * 1000:.0f} ms, slowest {max(took) * 1000:.0f} ms;"
        f" {too_many} frames dropped, {lost} of others"
    )
    assert len(others(after)) >= 2 * len(modest)  # each way
    assert len(took) == len(modest) * int(LONG / CALL_EVERY)
    assert too_many > 1000
    assert passed <= LIMITS.rate * lasted + LIMITS.burst
    assert passed - used >= 0.1 * (LIMITS.rate * lasted - used)  # in bursts, so not all of it
    assert lost == 0
    assert statistics.median(took) < 0.3
