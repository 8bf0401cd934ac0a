"""How a rate and a latency are taken from any `call` or stream."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import anyio

Call = Callable[[], Awaitable[object]]
SETTLE = 0.2  # of a stream's time passes before its rate is taken


async def rate(call: Call, *, in_flight: int, seconds: float) -> float:
    """Calls per second with `in_flight` callers, each waiting for its answer."""
    done = 0
    end = time.perf_counter() + seconds

    async def caller() -> None:
        nonlocal done
        while True:
            await call()
            done += 1
            if time.perf_counter() >= end:
                return

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


async def stream_rate(open_stream: Callable[[], AsyncIterator[Any]], *, seconds: float) -> float:
    """Items per second of one stream that never ends, once it has got going."""
    count = first = 0
    begin = time.perf_counter()
    now = settled = begin
    async with aclosing(open_stream()) as stream:  # type: ignore[type-var]
        async for _ in stream:
            count += 1
            now = time.perf_counter()
            if now - begin < seconds * SETTLE or not first:
                settled, first = now, count
            elif now - begin >= seconds:
                break
    return (count - first) / (now - settled) if now > settled else 0.0
