"""How a rate and a latency are taken from any `call`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable

import anyio

Call = Callable[[], Awaitable[object]]


async def rate(call: Call, *, in_flight: int, seconds: float) -> float:
    """Calls per second with `in_flight` callers, each waiting for its answer."""
    done = 0
    end = time.perf_counter() + seconds

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await call()
            done += 1

    start = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for _ in range(in_flight):
            tasks.start_soon(caller)
    return done / (time.perf_counter() - start)


async def p50(call: Call, *, count: int) -> float:
    """Median latency in milliseconds of `count` calls, one at a time."""
    samples = []
    for _ in range(count):
        start = time.perf_counter()
        await call()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples) * 1000
