"""The peak of memory that a 64 MiB upload takes, both ends together, against the body.

Each round has two fresh processes, because memory once used hides what the next upload
needs. Each end reads the kernel's own peak of its resident memory (`VmHWM`) and takes off
what was resident just before, when the sender's body existed already and some calls had
warmed both up. The sum of both peaks is at least the peak of the sum.

As a client, `python -m bench.memory ENGINE SEED WHERE WAY` uploads once and prints a line.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from functools import partial

import anyio

from bench import mesh
from bench.peak import Peak
from bench.processes import other
from bench.rows import Measure, Row, row, unmeasured
from bench.run import Run
from lattica.config import MIB
from lattica.identity import wire
from lattica.identity.keys import Identity
from lattica.rpc import Buffer

WAYS = {"upload64m_memory": "value"}
MEASURES = ("upload64m_memory", "upload64m_memory_file")
BODY = 64 * MIB


async def rows(run: Run, wanted: Collection[str]) -> list[Row]:
    """The rows among `wanted`."""
    result: list[Row] = []
    for measure in wanted:
        if measure not in WAYS:
            reason = "methods do not take streams yet"
            result += [unmeasured(measure, engine, reason) for engine in run.engines]
            continue
        contestants: list[Measure] = [
            partial(_upload, run, engine, WAYS[measure]) for engine in run.engines
        ]
        values = await run.medians(measure, contestants, warm_up=False)
        result += [
            row(measure, engine, value / MIB, "MiB", reference=BODY / MIB, against="the body")
            for engine, value in zip(run.engines, values, strict=True)
        ]
    return result


async def _upload(run: Run, engine: str, way: str) -> float:
    """One upload's extra bytes."""
    async with run.server(engine) as (where, _):
        words = (engine, run.seed.hex(), wire.encode(where).hex(), way)
        loop = ("--uvloop",) if run.options.uvloop else ()
        async with other("bench.memory", *words, *loop) as client:
            return float(await client.line())


async def main(engine: str, seed: str, where: str, way: str) -> None:
    """The client's side."""
    assert way in WAYS.values()
    server = wire.decode(bytes.fromhex(where), mesh.Where)
    authority = Identity(bytes.fromhex(seed))
    body = Buffer(bytes(range(256)) * (BODY // 256))
    async with mesh.client(authority, server, mesh.link_config(engine)) as client:
        for _ in range(20):
            assert await client.stub.take(Buffer(body.data[: 64 * 1024])) == 64 * 1024
        await client.stub.watch_memory()
        here = Peak()
        assert await client.stub.take(body) == BODY
        print(here.extra() + await client.stub.peak(), flush=True)


if __name__ == "__main__":
    words = sys.argv[1:5]
    anyio.run(lambda: main(*words), backend_options={"use_uvloop": "--uvloop" in sys.argv})
