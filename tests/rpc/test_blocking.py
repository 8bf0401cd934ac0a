"""A handler that keeps the event loop to itself is named, once, with the cure."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import pytest

from lattica.config import RpcConfig
from lattica.errors import RemoteError
from lattica.rpc import Rpc, method
from tests.rpc.mesh import Mesh, until

pytestmark = pytest.mark.anyio
LIMIT = 0.05  # seconds


class Blocks:
    def __init__(self) -> None:
        self.cleaned = asyncio.Event()

    @method()
    async def at_once(self, seconds: float) -> str:
        time.sleep(seconds)  # noqa: ASYNC251
        return "done"

    @method()
    async def later(self, seconds: float) -> None:
        await asyncio.sleep(0)
        time.sleep(seconds)  # noqa: ASYNC251
        raise ValueError("late")

    @method()
    async def cleanup(self, seconds: float) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            time.sleep(seconds)  # noqa: ASYNC251
            self.cleaned.set()

    @method()
    async def items(self, seconds: float) -> AsyncIterator[int]:
        yield 1
        time.sleep(seconds)  # noqa: ASYNC251
        yield 2

    @method()
    async def patient(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.Event().wait()
        except TimeoutError:
            return "patient"
        return "never"


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with Mesh(RpcConfig(block_warning=LIMIT)) as mesh:
        mesh.b.register("blocks", Blocks())
        yield mesh


@pytest.fixture(params=["link", "local"])
def stub(mesh: Mesh, request: pytest.FixtureRequest) -> Blocks:
    rpc: Rpc = mesh.a if request.param == "link" else mesh.b
    return rpc.client(mesh.b.local, Blocks, "blocks", timeout=10)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "event loop" in each.getMessage()]


async def test_a_handler_that_blocks_is_named_once(
    stub: Blocks, mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lattica.rpc"):
        assert await stub.at_once(2 * LIMIT) == "done"
        assert await stub.at_once(4 * LIMIT) == "done"
        with pytest.raises(RemoteError, match="late"):
            await stub.later(2 * LIMIT)
        assert [i async for i in stub.items(2 * LIMIT)] == [1, 2]
    first, second, third = told(caplog)
    assert first.startswith("blocks.at_once kept the event loop for 0.1")
    assert 'run_in="thread"' in first
    assert second.startswith("blocks.later")
    assert third.startswith("blocks.items")
    meter = mesh.b._registry.services["blocks"]["at_once"].meter
    assert 4 * LIMIT <= meter.blocked < 1.0


async def test_a_handler_that_waits_is_left_alone(
    stub: Blocks, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lattica.rpc"):
        assert await stub.patient(2 * LIMIT) == "patient"
    assert told(caplog) == []


async def test_a_cleanup_that_blocks_is_found_too(
    mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    stub = mesh.a.client(mesh.b.local, Blocks, "blocks")
    with caplog.at_level(logging.WARNING, "lattica.rpc"):
        task = asyncio.create_task(stub.cleanup(2 * LIMIT))
        await until(lambda: mesh.b._registry.admission.running == 1)
        task.cancel()
        await until(lambda: mesh.b._registry.admission.running == 0)
    assert [text.split()[0] for text in told(caplog)] == ["blocks.cleanup"]
