"""The peak of memory that a 64 MiB upload takes, both ends together, against the body.

Each round has two fresh processes, because memory once used hides what the next upload
needs. Each end reads the kernel's own peak of its resident memory (`VmHWM`) and takes off
what was resident just before, when the sender's body existed already and some calls had
warmed both up. As a `value` the body is one argument; as a `file` it is a stream of 256
KiB pieces, which the other end writes to a file as they come. The sum of both peaks is at
least the peak of the sum.

As a client, `python -m bench.memory ENGINE SEED WHERE WAY` uploads once and prints a line.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Collection
from functools import partial

import anyio

from bench import mesh
from bench.peak import Peak
from bench.processes import other
from bench.rows import Measure, Row, row
from bench.run import Run
from lattica.config import KIB, MIB
from lattica.identity import wire
from lattica.identity.keys import Identity
from lattica.rpc import Buffer

WAYS = {"upload64m_memory": "value", "upload64m_memory_file": "file"}
MEASURES = tuple(WAYS)
BODY = 64 * MIB
PIECE = 256 * KIB


async def rows(run: Run, wanted: Collection[str]) -> list[Row]:
    """The rows among `wanted`."""
    result: list[Row] = []
    for measure in wanted:
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

        async def pieces(nbytes: int) -> AsyncIterator[Buffer]:
            for at in range(0, nbytes, PIECE):
                yield Buffer(body.data[at : at + PIECE])

        assert await client.stub.store(pieces(PIECE)) == PIECE
        await client.stub.watch_memory()
        here = Peak()
        if way == "file":
            assert await client.stub.store(pieces(BODY)) == BODY
        else:
            assert await client.stub.take(body) == BODY
        print(here.extra() + await client.stub.peak(), flush=True)


if __name__ == "__main__":
    words = sys.argv[1:5]
    anyio.run(lambda: main(*words), backend_options={"use_uvloop": "--uvloop" in sys.argv})
