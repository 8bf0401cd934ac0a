"""A loop whose time jumps."""

from __future__ import annotations

import asyncio
import time

import anyio
import anyio.to_thread
import pytest

from lattica.virtual_loop import VirtualLoop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


async def test_hours_pass_at_once_and_in_order() -> None:
    seen: list[tuple[str, float]] = []
    loop = asyncio.get_running_loop()
    before, start = time.monotonic(), loop.time()

    async def wait(name: str, seconds: float) -> None:
        await anyio.sleep(seconds)
        seen.append((name, round(loop.time() - start)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, "late", 7200)
        tasks.start_soon(wait, "early", 60)
    assert seen == [("early", 60), ("late", 7200)]
    assert time.monotonic() - before < 5


async def test_deadlines_are_virtual() -> None:
    with pytest.raises(TimeoutError):
        with anyio.fail_after(600):
            await anyio.sleep_forever()


async def test_a_stall_makes_every_passed_timer_due() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    fired: list[int] = []
    for delay in (1, 2, 50):
        loop.call_later(delay, fired.append, delay)
    loop.advance(10)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert fired == [1, 2]


async def test_threads_still_work() -> None:
    assert await anyio.to_thread.run_sync(lambda: 7) == 7


async def test_time_stands_while_a_thread_works() -> None:
    began = asyncio.get_running_loop().time()
    with anyio.move_on_after(60.0) as scope:
        await asyncio.to_thread(time.sleep, 0.05)
    assert not scope.cancelled_caught
    assert asyncio.get_running_loop().time() == began


def test_a_deadlock_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lattica.virtual_loop.STUCK_AFTER", 0.01)
    with pytest.raises(RuntimeError, match="nothing will ever happen"):
        anyio.run(anyio.sleep_forever, backend_options={"loop_factory": VirtualLoop})
