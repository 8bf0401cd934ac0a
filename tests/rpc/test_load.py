"""Many calls at once: each has its one outcome, and bounds hold."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections import Counter

import pytest

from lattica.config import KIB, RpcConfig
from lattica.errors import BusyError, DeadlineError
from lattica.rpc import Buffer
from tests.rpc.mesh import Mesh, until
from tests.rpc.services import Bench

pytestmark = pytest.mark.anyio


async def test_ten_thousand_calls_at_once() -> None:
    async with Mesh() as mesh, asyncio.timeout(60):
        mesh.b.register("bench", Bench())
        stub = mesh.a.client(mesh.b.local, Bench, "bench")
        results = await asyncio.gather(*(stub.add(i, i) for i in range(10_000)))
    assert results == [2 * i for i in range(10_000)]


async def test_a_thousand_bodies_at_once() -> None:
    async with Mesh(RpcConfig(stream_window=64 * KIB, max_streams_per_peer=32)) as mesh:
        mesh.b.register("bench", Bench())
        stub = mesh.a.client(mesh.b.local, Bench, "bench")
        sizes = [17_000 + i * 100 for i in range(1000)]
        async with asyncio.timeout(60):
            results = await asyncio.gather(*(stub.echo(Buffer(bytes(size))) for size in sizes))
        assert [len(result) for result in results] == sizes


async def test_a_storm_of_cancellations_leaves_nothing_behind() -> None:
    async with Mesh() as mesh, asyncio.timeout(60):
        bench = Bench()
        mesh.b.register("bench", bench)
        stub = mesh.a.client(mesh.b.local, Bench, "bench")
        outcomes: Counter[str] = Counter()

        async def one(i: int) -> None:
            task: asyncio.Task[object]
            if i % 3 == 0:
                task = asyncio.create_task(stub.hang())
            elif i % 3 == 1:
                task = asyncio.create_task(stub.add(i))
            else:
                task = asyncio.create_task(stub.echo(Buffer(bytes(200_000))))
            for _ in range(i % 13):
                await asyncio.sleep(0)
            if i % 3 != 1 or i % 2:
                task.cancel()
            try:
                await task
                outcomes["value"] += 1
            except asyncio.CancelledError:
                outcomes["cancelled"] += 1

        await asyncio.gather(*(one(i) for i in range(1500)))
        assert outcomes.total() == 1500
        assert outcomes["cancelled"] > 500
        session = next(iter(mesh.a._sessions.values()))
        served = next(iter(mesh.b._sessions.values())).serving
        await until(lambda: not bench.running and not len(served))
        assert len(session.calls) == 0
        assert await stub.add(1) == 2
        for rpc in (mesh.a, mesh.b):
            channel = next(iter(rpc._sessions.values())).channel
            assert not channel.sending._sources
            assert not channel.sending._started_bytes
            assert not channel.receiving._receiving
            assert rpc.counters["bad_frame"] == 0


async def test_too_many_calls_are_told_to_come_back() -> None:
    async with Mesh(RpcConfig(max_calls_per_peer=10)) as mesh, asyncio.timeout(10):
        bench = Bench()
        mesh.b.register("bench", bench)
        stub = mesh.a.client(mesh.b.local, Bench, "bench")
        waiting = [asyncio.create_task(stub.wait()) for _ in range(10)]
        await bench.started.wait()
        with pytest.raises(BusyError) as caught:
            await stub.add(1)
        assert caught.value.retry_after > 0
        bench.release.set()
        assert await asyncio.gather(*waiting) == ["released"] * 10
        assert await stub.add(1) == 2
        assert mesh.b.counters["refused:busy"] == 1


async def test_too_many_streams_are_told_to_come_back() -> None:
    async with Mesh(RpcConfig(max_streams_per_peer=4)) as mesh, asyncio.timeout(10):
        mesh.b.register("bench", Bench())
        stub = mesh.a.client(mesh.b.local, Bench, "bench")
        streams = [stub.silent() for _ in range(3)]
        for items in streams:
            assert await anext(items) == 0
        with pytest.raises(BusyError):
            await anext(stub.silent())
        assert len(await stub.echo(Buffer(bytes(3_000_000)))) == 3_000_000
        del items
        streams.pop()
        while True:
            try:
                assert await anext(stub.silent()) == 0
                break
            except BusyError:
                await asyncio.sleep(0)


async def test_deadlines_of_many_calls() -> None:
    async with Mesh() as mesh, asyncio.timeout(20):
        bench = Bench()
        mesh.b.register("bench", bench)
        stub = mesh.a.client(mesh.b.local, Bench, "bench", timeout=0.1)
        outcomes = await asyncio.gather(*(stub.hang() for _ in range(2000)), return_exceptions=True)
        assert all(isinstance(outcome, DeadlineError) for outcome in outcomes)
        await until(lambda: not bench.running)


async def test_a_reader_that_stops_bounds_the_memory_of_both_ends() -> None:
    async with Mesh(RpcConfig(stream_window=64 * KIB)) as mesh, asyncio.timeout(20):
        bench = Bench()
        mesh.b.register("bench", bench)
        stub = mesh.a.client(mesh.b.local, Bench, "bench")
        gc.collect()
        tracemalloc.start()
        try:
            items = stub.parts(10_000_000, 10_000)
            await anext(items)
            for _ in range(3000):
                await asyncio.sleep(0)
            assert tracemalloc.get_traced_memory()[0] < 1_000_000
            assert bench.produced < 20
        finally:
            tracemalloc.stop()
