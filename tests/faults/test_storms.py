"""Very many calls at once, cancelled, late or never read, over the whole stack."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from lattica.config import RpcConfig
from lattica.errors import BusyError, DeadlineError
from lattica.path.memory import Conditions
from lattica.rpc import Buffer
from tests.faults.baseline import settle
from tests.faults.stack import Stack
from tests.faults.workload import SERVICE, Ledger

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("engine")]


async def test_more_bodies_than_streams_each_cancelled_at_some_moment() -> None:
    chance = random.Random(1)
    config = RpcConfig(inline_limit=64)  # else so many bodies take too long to send
    async with Stack("a", "b", conditions=Conditions(latency=0.002), rpc=config) as stack:
        ledger = Ledger()
        stack["b"].rpc.register(SERVICE, ledger)
        stub = stack["a"].client(stack["b"], Ledger, SERVICE)
        assert await stub.add(-1, 1) == 2
        link = stack["a"].endpoint.find(stack["b"].endpoint.local)
        outcomes: Counter[str] = Counter()

        async def one(call: int) -> None:
            task = asyncio.ensure_future(stub.echo(call, Buffer(bytes(200))))  # type: ignore[arg-type]
            if call % 4:
                await asyncio.sleep(chance.random() * 0.05)
                task.cancel()
            try:
                await task
                outcomes["value"] += 1
            except asyncio.CancelledError:
                outcomes["cancelled"] += 1

        await asyncio.gather(*(one(call) for call in range(2500)))
        assert outcomes.total() == 2500
        assert outcomes["value"] >= 625
        assert outcomes["cancelled"] > 200
        assert max(ledger.ran.values()) == 1
        await settle(stack["a"], stack["b"])
        assert stack["a"].endpoint.find(stack["b"].endpoint.local) is link, "the link held"
        assert len(await stub.echo(9999, Buffer(bytes(300_000)))) == 300_000


async def test_a_deadline_that_passes_while_the_reader_is_busy_costs_its_stream_alone() -> None:
    async with Stack("a", "b", conditions=Conditions(latency=0.05)) as stack:
        ledger = Ledger()
        stack["b"].rpc.register(SERVICE, ledger)
        a, b = stack["a"], stack["b"]
        a.knows(b)
        stub = a.rpc.client(b.rpc.local, Ledger, SERVICE, stream_timeout=1.0)
        link = await a.endpoint.connect(b.rpc.local)
        items = stub.drip(0, 10_000, 0.01)
        assert await anext(items) == 0
        beside = asyncio.ensure_future(stub.wait(1, 4.0))  # type: ignore[arg-type]
        await asyncio.sleep(3.0)
        with pytest.raises(DeadlineError):
            async for _ in items:
                pass
        assert await beside == 1
        assert link.is_open
        await settle(a, b)


async def test_a_reader_that_stops_and_a_flood_do_not_stall_another_peer() -> None:
    async with Stack("a", "b", "c", conditions=Conditions(latency=0.002)) as stack:
        ledger = Ledger()
        stack["b"].rpc.register(SERVICE, ledger)
        greedy = stack["a"].client(stack["b"], Ledger, SERVICE)
        modest = stack["c"].client(stack["b"], Ledger, SERVICE)
        stuck = [greedy.parts(-index, 1_000_000, 50_000) for index in range(1, 30)]
        for items in stuck:
            assert len(await anext(items)) == 50_000  # and never another one
        flood = [asyncio.ensure_future(greedy.add(n, n)) for n in range(10_000)]  # type: ignore[arg-type]
        loop, worst = asyncio.get_running_loop(), 0.0
        for call in range(20_000, 20_100):
            began = loop.time()
            assert await modest.add(call, 1) == 2
            worst = max(worst, loop.time() - began)
        assert worst < 0.1, "a few round trips of 4 ms on the clock of the network"
        outcomes = await asyncio.gather(*flood, return_exceptions=True)
        assert all(isinstance(one, int | BusyError) for one in outcomes)
        assert max(ledger.ran.values()) == 1
        for items in stuck:
            await items.aclose()
        await settle(stack["a"], stack["b"], stack["c"])
