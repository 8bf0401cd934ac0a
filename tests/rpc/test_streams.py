"""Item streams: typed, in order, with back-pressure, never silently short."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

import pytest

from lattica.errors import (
    BadArgumentsError,
    BadResultError,
    CallLostError,
    DeadlineError,
    RemoteError,
)
from lattica.rpc import Rpc
from tests.rpc.mesh import WINDOW, Mesh, collect
from tests.rpc.services import Bench

pytestmark = pytest.mark.anyio


@pytest.fixture
def bench(mesh: Mesh) -> Bench:
    bench = Bench()
    mesh.b.register("bench", bench)
    return bench


@pytest.fixture(params=["link", "local"])
def stub(mesh: Mesh, bench: Bench, request: pytest.FixtureRequest) -> Bench:
    rpc: Rpc = mesh.a if request.param == "link" else mesh.b
    return rpc.client(mesh.b.local, Bench, "bench", timeout=5)


@pytest.fixture
def far(mesh: Mesh, bench: Bench) -> Bench:
    return mesh.a.client(mesh.b.local, Bench, "bench", timeout=5)


async def settle(bench: Bench) -> int:
    """How much was produced once the producer produces no more."""
    before = -1
    while bench.produced != before:
        before = bench.produced
        for _ in range(50):
            await asyncio.sleep(0)
    return before


@pytest.mark.parametrize("n", [0, 1, 5000])
async def test_all_items_in_order(stub: Bench, n: int) -> None:
    assert [i async for i in stub.count(n)] == list(range(n))


async def test_items_larger_than_the_window(stub: Bench) -> None:
    parts = [bytes(part) async for part in stub.parts(5, 5 * WINDOW)]
    assert parts == [bytes([i]) * (5 * WINDOW) for i in range(5)]


async def test_an_error_comes_after_the_items_before_it(stub: Bench) -> None:
    got: list[int] = []
    with pytest.raises(RemoteError, match="ValueError on b: enough"):
        await collect(stub.count(10, fail_at=7), got)
    assert got == list(range(7))


async def test_an_item_of_the_wrong_type(stub: Bench) -> None:
    got: list[int] = []
    with pytest.raises(BadResultError, match="wrong_items"):
        await collect(stub.wrong_items(), got)
    assert got == [1]


async def test_wrong_arguments_are_told_at_the_call(stub: Bench) -> None:
    with pytest.raises(BadArgumentsError, match="count"):
        stub.count("many")  # type: ignore[arg-type]


async def test_a_consumer_that_stops_reading_stops_the_producer(far: Bench, bench: Bench) -> None:
    items = far.parts(1_000_000, 1024)
    await anext(items)
    produced = await settle(bench)
    # A window on its way, the item the producer holds, and the one taken.
    assert produced <= WINDOW // 1024 + 3
    for _ in range(200):
        await anext(items)
    assert produced + 100 < await settle(bench) <= produced + 201
    await cast(Any, items).aclose()
    async with asyncio.timeout(2):
        await bench.cancelled.wait()


async def test_a_slow_consumer_delays_nobody_else(far: Bench, bench: Bench) -> None:
    slow = [far.parts(1000, 4096) for _ in range(5)]
    for items in slow:
        await anext(items)
    async with asyncio.timeout(5):
        assert await far.add(1) == 2
        assert len([1 async for _ in far.parts(1000, 4096)]) == 1000
        for items in slow:
            assert len([1 async for _ in items]) == 999


async def test_neither_producer_nor_consumer_keeps_the_loop_to_itself(
    far: Bench, bench: Bench
) -> None:
    reading = asyncio.create_task(collect(far.count(10_000_000), []))
    async with asyncio.timeout(20):
        for _ in range(20):
            before = bench.produced
            await far.add(1)
            assert bench.produced - before < 20_000
    assert not reading.done()
    reading.cancel()


async def test_closing_cancels_the_handler(stub: Bench, bench: Bench) -> None:
    items = stub.silent()
    assert await anext(items) == 0
    await cast(Any, items).aclose()
    async with asyncio.timeout(2):
        await bench.cancelled.wait()
    assert [i async for i in items] == []


async def test_breaking_out_cancels_the_handler(stub: Bench, bench: Bench) -> None:
    async for i in stub.silent():
        assert i == 0
        break
    async with asyncio.timeout(2):
        await bench.cancelled.wait()


async def test_cancelling_the_consumer_cancels_the_handler(stub: Bench, bench: Bench) -> None:
    async def read() -> None:
        async for _ in stub.silent():
            pass

    task = asyncio.create_task(read())
    async with asyncio.timeout(2):
        await bench.started.wait()
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await bench.cancelled.wait()


async def test_a_stream_never_begun_calls_nothing(far: Bench, mesh: Mesh) -> None:
    items = far.count(3)
    await cast(Any, items).aclose()
    del items
    assert await far.add(1) == 2
    assert mesh.b.stats().served["bench.count"].calls == 0


async def test_one_consumer_at_a_time(far: Bench) -> None:
    items = far.silent()
    await anext(items)
    waiting = asyncio.create_task(cast(Any, items).__anext__())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="another task"):
        await anext(items)
    waiting.cancel()


async def test_the_streams_own_deadline(mesh: Mesh, bench: Bench) -> None:
    for rpc in (mesh.a, mesh.b):
        stub = rpc.client(mesh.b.local, Bench, "bench", stream_timeout=0.05)
        got: list[int] = []
        with pytest.raises(DeadlineError):
            await collect(stub.silent(), got)
        assert got == [0]


async def test_without_one_a_stream_outlives_the_timeout(mesh: Mesh, bench: Bench) -> None:
    stub = mesh.a.client(mesh.b.local, Bench, "bench", timeout=0.02)
    items = stub.silent()
    await anext(items)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await anext(items)


async def test_a_link_lost_in_mid_stream_is_never_a_short_stream(
    mesh: Mesh, bench: Bench, far: Bench
) -> None:
    got: list[int] = []
    items = far.count(1_000_000)
    while len(got) <= 500:
        got.append(await anext(items))
    mesh.network.partition(mesh.a.local, mesh.b.local)
    with pytest.raises(CallLostError) as caught:
        await collect(items, got)
    assert got == list(range(len(got)))
    assert len(got) > 500
    assert caught.value.may_have_run
    async with asyncio.timeout(2):
        await bench.cancelled.wait()


async def test_a_generator_may_hold_a_cancel_scope(far: Bench) -> None:
    assert [i async for i in far.scope_user()] == [1, 2]
