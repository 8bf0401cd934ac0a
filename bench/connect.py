"""From the first packet to the first reply, both ends having a key and a socket already.

Each time a new peer dials (a new grpc channel connects); what it calls is the 128 B echo.
The median of ten in a row makes one round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection
from functools import partial

from bench import grpc_peer, mesh
from bench.echo import SMALL, against_grpc
from bench.rows import Measure, Row
from bench.run import Run
from lattica.rpc import Buffer

MEASURES = ("connect",)
DIALS = 10


async def rows(run: Run, wanted: Collection[str]) -> list[Row]:
    """The row."""
    assert "connect" in wanted
    dials = max(2, int(DIALS * min(1.0, run.seconds)))
    contestants: list[Measure] = []
    for engine in run.engines:
        where = await run.where(engine)
        contestants.append(partial(_ours, run, engine, where, dials))
    if (theirs := await run.grpc_where()) is not None:
        contestants.append(partial(_grpc, theirs, dials))
    return await against_grpc(run, "connect", "ms", contestants)


async def _ours(run: Run, engine: str, where: mesh.Where, dials: int) -> float:
    body, samples = Buffer(SMALL), []
    config = mesh.link_config(engine)
    for _ in range(dials):
        async with mesh.client(run.authority, where, config) as client:
            start = time.perf_counter()
            await client.stub.echo(body)
            samples.append(time.perf_counter() - start)
    return statistics.median(samples) * 1000


async def _grpc(where: grpc_peer.Where, dials: int) -> float:
    samples = []
    for _ in range(dials):
        start = time.perf_counter()
        async with grpc_peer.client(where) as client:
            await client.echo(SMALL)
            samples.append(time.perf_counter() - start)
    return statistics.median(samples) * 1000
