"""What a relay costs, on the real lab: an echo's time, and bulk beside a direct way's."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from lattica.rpc import Buffer, method
from tests.netlab.kinds import PORT_RESTRICTED, SYMMETRIC_RANDOM
from tests.netlab.lab import Lab
from tests.netlab.reach_peers import RealPeer, real_peer, real_relays
from tests.reach.peers import ACCESS, ready, until
from tests.reach.test_matrix import is_relayed

pytestmark = [pytest.mark.anyio, pytest.mark.netlab]
ECHOES = 20
SIZE = 3 * 1024 * 1024  # bytes of bulk
LINE = 4e6  # bytes/s of each site's line: below what the lab itself forwards, see docs/network.md
ROUNDS = 3


class Sink:
    """Takes bulk."""

    @method()
    async def take(self, data: Buffer) -> int:
        """Its size."""
        return len(data)


@asynccontextmanager
async def pairs(*kinds: str, rate: float | None = None) -> AsyncIterator[list[RealPeer]]:
    """A linked pair for each kind; the relays come last."""
    line = {} if rate is None else {"rate": rate}
    async with AsyncExitStack() as stack:
        lab = await stack.enter_async_context(Lab(seed=3))
        relays = await stack.enter_async_context(real_relays(lab))
        peers: list[RealPeer] = []
        for kind, name in itertools.product(kinds, "ab"):
            site = await lab.site(kind, delay=ACCESS, **line)
            made = real_peer(await site.host(), f"{kind} {name}", relays=relays)
            peers.append(await stack.enter_async_context(made))
            peers[-1].rpc.register("sink", Sink())
        await ready(*peers)
        for a, b in zip(peers[::2], peers[1::2], strict=True):
            await a.dial(b)
        yield [*peers, *relays]


async def echo(one: RealPeer, other: RealPeer) -> float:
    """Seconds of a call that does nothing."""
    began = time.perf_counter()
    await one.stub(other).ping()
    return time.perf_counter() - began


async def test_an_echo_over_a_relay_takes_little_more_than_its_legs() -> None:
    async with pairs(SYMMETRIC_RANDOM) as (a, b, *relays):
        assert is_relayed(a, b)
        relay = next(each for each in relays if str(each.id) in a.link(b).address)
        taken: list[tuple[float, float, float]] = [
            (await echo(a, b), await echo(a, relay), await echo(b, relay)) for _ in range(ECHOES)
        ]
        relayed, *legs = (statistics.median(each) for each in zip(*taken, strict=True))
        limit = 2.2 * sum(leg / 2 for leg in legs) + 0.002
        print(f"echo {relayed * 1000:.1f} ms, legs {[round(leg * 1000, 1) for leg in legs]} ms")
        assert is_relayed(a, b)
        assert relayed <= limit


@pytest.mark.parametrize("rate", [LINE, pytest.param(None, marks=pytest.mark.slow)])
async def test_bulk_over_a_relay_is_at_least_half_of_direct(rate: float | None) -> None:
    async with pairs(SYMMETRIC_RANDOM, PORT_RESTRICTED, rate=rate) as (a, b, c, d, *_):
        await until(lambda: not is_relayed(c, d), 10.0)
        relayed, direct = [], []
        for _ in range(ROUNDS):
            relayed.append(await bulk(a, b))
            direct.append(await bulk(c, d))
        assert is_relayed(a, b)
        assert not is_relayed(c, d)
        print(f"MB/s relayed {told(relayed)}, direct {told(direct)}")
        if rate is not None:
            assert statistics.median(relayed) >= 0.5 * statistics.median(direct)


async def bulk(one: RealPeer, other: RealPeer) -> float:
    """Bytes/s."""
    sink = one.rpc.client(other.id, Sink, "sink", timeout=60.0)
    began = time.perf_counter()
    assert await sink.take(Buffer(bytes(SIZE))) == SIZE
    return SIZE / (time.perf_counter() - began)


def told(rates: list[float]) -> str:
    return " ".join(f"{each / 1e6:.2f}" for each in rates)
