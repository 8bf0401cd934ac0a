"""A lost link ends every call on it at once, and says whether it may have run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from lattica.errors import CallLostError, LinkError
from lattica.rpc import Buffer
from tests.rpc.mesh import Mesh, until
from tests.rpc.services import Bench

pytestmark = pytest.mark.anyio


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with Mesh(latency=0.001) as mesh:
        yield mesh


async def test_all_calls_of_the_link_end_at_once_and_handlers_are_cancelled(mesh: Mesh) -> None:
    bench = Bench()
    mesh.b.register("bench", bench)
    stub = mesh.a.client(mesh.b.local, Bench, "bench")
    tasks = [asyncio.create_task(stub.hang()) for _ in range(100)]
    async with asyncio.timeout(2):
        await until(lambda: bench.running == 100)
        mesh.network.partition(mesh.a.local, mesh.b.local)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(o, CallLostError) and o.may_have_run for o in outcomes)
        await until(lambda: not bench.running)
    assert mesh.b.stats().served["bench.hang"].in_flight == 0


async def test_a_call_that_was_never_written_has_not_run(mesh: Mesh) -> None:
    mesh.b.register("bench", Bench())
    stub = mesh.a.client(mesh.b.local, Bench, "bench")
    await stub.add(1)
    call = asyncio.create_task(stub.add(1))
    loop = asyncio.get_running_loop()
    # After the task's first step and before the channel's flush, in one turn of the loop.
    link = mesh.a.links.find(mesh.b.local)
    assert link is not None
    session = next(iter(mesh.a._sessions.values()))
    loop.call_soon(session.channel.link_lost, LinkError("cut"))
    with pytest.raises(CallLostError, match="has not run") as caught:
        await call
    assert not caught.value.may_have_run


async def test_a_call_whose_body_was_not_sent_whole_has_not_run(mesh: Mesh) -> None:
    mesh.b.register("bench", Bench())
    stub = mesh.a.client(mesh.b.local, Bench, "bench")
    await stub.add(1)
    call = asyncio.create_task(stub.echo(Buffer(bytes(8_000_000))))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    mesh.network.partition(mesh.a.local, mesh.b.local)
    with pytest.raises(CallLostError) as caught:
        await call
    assert not caught.value.may_have_run


async def test_after_a_loss_the_next_call_connects_again(mesh: Mesh) -> None:
    mesh.b.register("bench", Bench())
    stub = mesh.a.client(mesh.b.local, Bench, "bench")
    for _ in range(3):
        assert await stub.add(1) == 2
        mesh.network.partition(mesh.a.local, mesh.b.local)
        mesh.network.heal(mesh.a.local, mesh.b.local)
    await asyncio.sleep(0)
    assert len(mesh.a._sessions) == len(mesh.b._sessions) == 0


async def test_a_cut_while_large_bodies_are_on_their_way(mesh: Mesh) -> None:
    mesh.b.register("bench", Bench())
    stub = mesh.a.client(mesh.b.local, Bench, "bench", timeout=5)
    for turns in range(0, 60, 3):
        tasks = [asyncio.create_task(stub.echo(Buffer(bytes(3_000_000)))) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        mesh.network.partition(mesh.a.local, mesh.b.local)
        mesh.network.heal(mesh.a.local, mesh.b.local)
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, Buffer | LinkError | CallLostError)
    assert len(await stub.echo(Buffer(bytes(3_000_000)))) == 3_000_000
