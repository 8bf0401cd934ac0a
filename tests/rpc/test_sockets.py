"""The same calls over QUIC on real sockets, in one process and between two."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from lattica.config import KIB, RpcConfig
from lattica.errors import (
    CallLostError,
    DeadlineError,
    LatticaError,
    PermissionDeniedError,
    RemoteError,
)
from lattica.rpc import Buffer, Rpc
from tests.rpc.mesh import collect
from tests.rpc.quic import CLIENT, SERVER, STRANGER, address, peer
from tests.rpc.services import Bench
from tests.rpc.upload_services import Intake, Producer

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]


@contextmanager
def server_process() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a serving process, and the process."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.rpc.serve_process"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


@pytest.fixture
async def client() -> AsyncIterator[Rpc]:
    async with peer(CLIENT, "client") as rpc:
        yield rpc


@pytest.fixture
async def server(client: Rpc) -> AsyncIterator[Bench]:
    bench = Bench()
    async with peer(SERVER, "server") as rpc:
        rpc.register("bench", bench)
        client.links.learn(rpc.local, address(rpc))
        yield bench


@pytest.fixture
def stub(client: Rpc, server: Bench) -> Bench:
    return client.client(SERVER.peer_id, Bench, "bench", timeout=20)


@pytest.fixture
async def intake(client: Rpc) -> AsyncIterator[Intake]:
    intake = Intake()
    async with peer(SERVER, "server") as rpc:
        rpc.register("intake", intake)
        client.links.learn(rpc.local, address(rpc))
        yield intake


@pytest.fixture
def taker(client: Rpc, intake: Intake) -> Intake:
    return client.client(SERVER.peer_id, Intake, "intake", stream_timeout=20)


@pytest.mark.parametrize("size", [0, 128, 16 * KIB + 1, 256 * KIB, 5_000_000])
async def test_buffers(stub: Bench, size: int) -> None:
    data = os.urandom(size)
    assert bytes(await stub.echo(Buffer(data))) == data


async def test_values_streams_and_errors(stub: Bench) -> None:
    assert await stub.add(2, b=3) == 5
    assert await stub.text(500_000) == "x" * 500_000
    got: list[Any] = []
    with pytest.raises(RemoteError, match="enough"):
        await collect(stub.count(3000, fail_at=2000), got)
    assert got == list(range(2000))
    parts = [len(part) async for part in stub.parts(4, 3_000_000)]
    assert parts == [3_000_000] * 4


async def test_thousands_of_calls_at_once(stub: Bench) -> None:
    async with asyncio.timeout(60):
        assert await asyncio.gather(*(stub.add(i, i) for i in range(10_000))) == [
            2 * i for i in range(10_000)
        ]


async def test_hundreds_of_bodies_and_calls_beside_each_other(stub: Bench) -> None:
    async with asyncio.timeout(60):
        bodies = [stub.echo(Buffer(bytes([i % 256]) * (20_000 + i))) for i in range(400)]
        smalls = [stub.add(i) for i in range(400)]
        results = await asyncio.gather(*bodies, *smalls)
    for i, result in enumerate(results[:400]):
        assert bytes(cast(Buffer, result)) == bytes([i % 256]) * (20_000 + i)


async def test_calls_start_in_order(stub: Bench, server: Bench) -> None:
    await asyncio.gather(*(stub.note(i) for i in range(1000)))
    assert server.order == list(range(1000))


async def test_cancelling_and_deadlines_reach_the_handler(
    client: Rpc, stub: Bench, server: Bench
) -> None:
    async with asyncio.timeout(10):
        task = asyncio.create_task(stub.hang())
        await server.started.wait()
        task.cancel()
        await server.cancelled.wait()
        server.cancelled = anyio.Event()
        with pytest.raises(DeadlineError):
            await client.client(SERVER.peer_id, Bench, "bench", timeout=0.1).hang()
        await server.cancelled.wait()


async def test_many_idle_streams_stall_nobody(stub: Bench) -> None:
    async with asyncio.timeout(30):
        idle = [stub.parts(1000, 1000) for _ in range(60)]
        for items in idle:
            await anext(items)
        assert len(await stub.echo(Buffer(bytes(3_000_000)))) == 3_000_000
        assert [i async for i in stub.count(100)] == list(range(100))
        for items in idle:
            await cast(Any, items).aclose()
        assert await stub.add(1) == 2


async def test_a_consumer_that_stops_reading_stops_the_producer(stub: Bench, server: Bench) -> None:
    async with asyncio.timeout(10):
        items = stub.parts(1_000_000, 10_000)
        await anext(items)
        before = -1
        while server.produced != before:
            before = server.produced
            await stub.add(1)
            await asyncio.sleep(0.05)
        assert before <= RpcConfig().stream_window // 10_000 + 3
        await cast(Any, items).aclose()
        await server.cancelled.wait()


async def test_a_stranger_is_refused(server: Bench, client: Rpc) -> None:
    await client.client(SERVER.peer_id, Bench, "bench").add(1)
    link = client.links.find(SERVER.peer_id)
    assert link is not None
    async with peer(STRANGER, "stranger") as stranger:
        stranger.links.learn(SERVER.peer_id, [link.address])
        stub = stranger.client(SERVER.peer_id, Bench, "bench", timeout=5)
        with pytest.raises(PermissionDeniedError):
            await stub.submit()
        assert await stub.echo(Buffer(b"hi")) == Buffer(b"hi")


async def test_both_ends_call_each_other_at_once_from_nothing(client: Rpc) -> None:
    async with peer(SERVER, "server") as server:
        for rpc, other in ((client, server), (server, client)):
            rpc.register("bench", Bench())
            rpc.links.learn(other.local, address(other))
        ab = client.client(server.local, Bench, "bench", timeout=10)
        ba = server.client(client.local, Bench, "bench", timeout=10)
        results = await asyncio.gather(
            *(ab.add(i) for i in range(50)), *(ba.add(i) for i in range(50))
        )
        assert results == [i + 1 for i in range(50)] * 2


# ---------------------------------------------------- items from the caller


async def test_uploads_of_small_and_of_large_items(taker: Intake) -> None:
    assert await taker.total(Producer().count(20_000)) == sum(range(20_000))
    parts = [os.urandom(size) for size in (0, 5, 3_000_000, 7, 100_000)]
    got = await taker.join(b"-", [Buffer(part) for part in parts], end=b"!")  # type: ignore[arg-type]
    assert bytes(got) == b"-".join(parts) + b"!"


async def test_items_both_ways(taker: Intake) -> None:
    doubled = [item async for item in taker.double(Producer().count(20_000))]
    assert doubled == list(range(0, 40_000, 2))


async def test_uploads_that_end_early_from_either_side(taker: Intake, intake: Intake) -> None:
    async with asyncio.timeout(20):
        producer = Producer()
        assert await taker.first(producer.count(10**9), 3) == [0, 1, 2]
        await producer.ended.wait()
        with pytest.raises(KeyError, match="my own"):
            await taker.total(Producer().count(1000, fail_at=500))
        assert isinstance(intake.errors[-1], RemoteError)
        with pytest.raises(RemoteError, match="no 0"):
            await taker.fail(Producer().count(10**9))


async def test_cancelling_an_upload_reaches_the_handler(taker: Intake, intake: Intake) -> None:
    async with asyncio.timeout(10):
        producer = Producer()
        task = asyncio.ensure_future(taker.hang(producer.count(10**9)))
        await intake.started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await producer.ended.wait()
        await intake.ended.wait()


async def test_a_handler_that_takes_nothing_stops_the_producer(
    taker: Intake, intake: Intake
) -> None:
    async with asyncio.timeout(20):
        producer = Producer()
        task = asyncio.ensure_future(taker.slow(producer.parts(1000, 10_000)))
        before = -1
        while producer.made != before:
            before = producer.made
            await taker.ping()
            await asyncio.sleep(0.05)
        assert 0 < before <= RpcConfig().stream_window // 10_000 + 3
        intake.release.set()
        assert await task == 10_000_000


async def test_uploads_at_once_beside_calls(taker: Intake) -> None:
    async with asyncio.timeout(30):
        totals = [taker.total(Producer().count(500 + n)) for n in range(300)]
        pings = [taker.ping() for _ in range(300)]
        results = await asyncio.gather(*totals, *pings)
    assert results == [sum(range(500 + n)) for n in range(300)] + [1] * 300


# ------------------------------------------------------------- two processes


async def test_two_processes(client: Rpc) -> None:
    with server_process() as (where, _):
        client.links.learn(SERVER.peer_id, [where])
        stub = client.client(SERVER.peer_id, Bench, "bench", timeout=10)
        data = os.urandom(2_000_000)
        assert bytes(await stub.echo(Buffer(data))) == data
        assert await asyncio.gather(*(stub.add(i) for i in range(2000))) == list(range(1, 2001))
        assert [i async for i in stub.count(5000)] == list(range(5000))
        with pytest.raises(RemoteError, match="ValueError on server: over there"):
            await stub.fail("over there")


async def test_a_killed_process_ends_calls_and_streams_within_two_seconds(client: Rpc) -> None:
    with server_process() as (where, process):
        client.links.learn(SERVER.peer_id, [where])
        stub = client.client(SERVER.peer_id, Bench, "bench", timeout=30)
        items = stub.silent()
        assert await anext(items) == 0
        calls = [asyncio.create_task(stub.hang()) for _ in range(100)]
        await stub.add(1)
        process.send_signal(signal.SIGKILL)
        async with asyncio.timeout(2.5):
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            with pytest.raises(CallLostError):
                await anext(items)
        assert all(isinstance(one, CallLostError) and one.may_have_run for one in outcomes)


async def test_a_killed_process_ends_uploads(client: Rpc) -> None:
    with server_process() as (where, process):
        client.links.learn(SERVER.peer_id, [where])
        stub = client.client(SERVER.peer_id, Intake, "intake", stream_timeout=30)
        producers = [Producer() for _ in range(20)]
        calls = [asyncio.ensure_future(stub.hang(each.silent(3))) for each in producers]
        await stub.ping()
        process.send_signal(signal.SIGKILL)
        async with asyncio.timeout(2.5):
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            for producer in producers:
                await producer.ended.wait()
        assert all(isinstance(one, CallLostError) and one.may_have_run for one in outcomes)


async def test_a_frozen_process_is_noticed_as_well(client: Rpc) -> None:
    with server_process() as (where, process):
        client.links.learn(SERVER.peer_id, [where])
        stub = client.client(SERVER.peer_id, Bench, "bench", timeout=30)
        await stub.add(1)
        process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(2.5):
            with pytest.raises(LatticaError):
                await stub.add(1)
        process.send_signal(signal.SIGCONT)
