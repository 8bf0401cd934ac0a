"""Small items in one stream, and small calls beside a large stream.

`items128`: items of 128 B a second, from an async generator on the server to an
`async for` here; the reference is a grpc.aio server stream of such messages.

`mixed_p50`: the median of 128 B calls, one at a time, while a stream of 256 KiB buffers
on the same link goes as fast as it can; `mixed_bulk`: the rate of that stream meanwhile,
against its rate alone, taken in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection
from functools import partial

import anyio

from bench import mesh
from bench.bulk import ITEM, megabytes
from bench.echo import SMALL, against_grpc
from bench.loops import stream_rate
from bench.rows import Measure, Row, row
from bench.run import Run
from lattica.rpc import Buffer

MEASURES = ("items128", "mixed_p50", "mixed_bulk")


async def rows(run: Run, wanted: Collection[str]) -> list[Row]:
    """The rows among `wanted`."""
    result: list[Row] = []
    if "items128" in wanted:
        result += await _items(run)
    if "mixed_p50" in wanted or "mixed_bulk" in wanted:
        result += [each for each in await _mixed(run) if each.measure in wanted]
    return result


async def _items(run: Run) -> list[Row]:
    contestants: list[Measure] = []
    for client in await run.clients():
        items = partial(client.stub.items, len(SMALL))
        contestants.append(partial(stream_rate, items, seconds=run.seconds))
    if (grpc := await run.grpc()) is not None:
        stream = partial(grpc.stream, len(SMALL))
        contestants.append(partial(stream_rate, stream, seconds=run.seconds))
    return await against_grpc(run, "items128", "items/s", contestants)


async def _mixed(run: Run) -> list[Row]:
    contestants: list[Measure] = []
    latencies: dict[str, list[float]] = {engine: [] for engine in run.engines}
    for engine, client in zip(run.engines, await run.clients(), strict=True):
        alone = partial(megabytes, partial(client.stub.bulk, ITEM), run.seconds)
        contestants += [alone, partial(_beside, client, run.seconds, latencies[engine])]
    values = await run.medians("echo beside bulk", contestants)
    result: list[Row] = []
    for index, engine in enumerate(run.engines):
        alone_rate, rate = values[2 * index : 2 * index + 2]
        p50 = statistics.median(latencies[engine][1:])  # the first was the warm-up
        result.append(row("mixed_p50", engine, p50, "ms"))
        result.append(
            row("mixed_bulk", engine, rate, "MB/s", reference=alone_rate, against="bulk alone")
        )
    return result


async def _beside(client: mesh.Client, seconds: float, latencies: list[float]) -> float:
    """The rate of a stream while another task calls; adds the calls' median in milliseconds."""
    body = Buffer(SMALL)
    samples: list[float] = []

    async def call() -> None:
        while True:
            start = time.perf_counter()
            await client.stub.echo(body)
            samples.append(time.perf_counter() - start)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        rate = await megabytes(partial(client.stub.bulk, ITEM), seconds)
        tasks.cancel_scope.cancel()
    latencies.append(statistics.median(samples) * 1000 if samples else seconds * 1000)
    return rate
