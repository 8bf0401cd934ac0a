"""Calls start in the order they were made, whatever they wait for."""

from __future__ import annotations

import asyncio

import pytest

from lattica.rpc import channel, control
from tests.rpc.mesh import Mesh
from tests.rpc.services import Bench

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("latency", [0.0, 0.002])
async def test_calls_made_before_and_after_the_link_is_up(latency: float) -> None:
    bench = Bench()
    async with Mesh(latency=latency) as mesh, asyncio.timeout(20):
        mesh.b.register("bench", bench)
        stub = mesh.a.client(mesh.b.local, Bench, "bench")
        tasks = []
        for i in range(300):
            tasks.append(asyncio.create_task(stub.note(i)))
            if i % 7 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
    assert bench.order == list(range(300))


async def test_a_full_control_plane_keeps_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CONTROL_WINDOW", 200)
    monkeypatch.setattr(channel, "ACK_EVERY", 50)
    bench = Bench()
    async with Mesh() as mesh, asyncio.timeout(20):
        mesh.b.register("bench", bench)
        stub = mesh.a.client(mesh.b.local, Bench, "bench")
        await stub.note(-1)
        tasks = []
        for i in range(300):
            tasks.append(asyncio.create_task(stub.note(i)))
            if i % 11 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
    assert bench.order == list(range(-1, 300))


async def test_one_of_those_waiting_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    async with Mesh(latency=0.005) as mesh, asyncio.timeout(20):
        mesh.b.register("bench", bench)
        stub = mesh.a.client(mesh.b.local, Bench, "bench")
        tasks = [asyncio.create_task(stub.note(i)) for i in range(5)]
        await asyncio.sleep(0)
        for i in (0, 3):
            tasks[i].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert bench.order == [1, 2, 4]
