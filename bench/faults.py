"""How long callers wait before they know that the other end is gone.

`dead_peer`: the process is killed (the kernel refuses the next packet). `dead_peer_silent`:
from one moment no packet gets through either way, as behind a pulled cable; a forwarder on
loopback drops them. `dead_peer_frozen`: the process is stopped (SIGSTOP), its socket still
takes packets. Seconds from the fault to the end of a call that was in flight, medians of
`rounds` links that fail independently, at different times after their last heartbeat.
"""

from __future__ import annotations

import contextlib
import signal
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection

import anyio

from bench import mesh
from bench.forwarder import forwarding
from bench.processes import Other
from bench.rows import Row, row
from bench.run import Run
from lattica.errors import LatticaError

MEASURES = ("dead_peer", "dead_peer_silent", "dead_peer_frozen")
STAGGER = 0.13  # seconds between faults: not a fraction of any heartbeat


async def rows(run: Run, wanted: Collection[str]) -> list[Row]:
    """The rows among `wanted`."""
    faults = {"dead_peer": _killed, "dead_peer_silent": _silent, "dead_peer_frozen": _frozen}
    result: list[Row] = []
    for measure in wanted:
        for engine in run.engines:
            run.tell(f"{measure}: {engine}")
            samples = await _together(run, engine, faults[measure])
            result.append(row(measure, engine, statistics.median(samples), "s"))
    return result


async def _together(run: Run, engine: str, fault: Callable[..., Awaitable[float]]) -> list[float]:
    """The fault on several links at once, since each mostly waits."""
    samples: list[float] = []

    async def one(index: int) -> None:
        samples.append(await fault(run, engine, 1.0 + index * STAGGER))

    async with anyio.create_task_group() as tasks:
        for index in range(run.rounds):
            tasks.start_soon(one, index)
    return samples


async def _killed(run: Run, engine: str, after: float) -> float:
    async with _linked(run, engine) as (client, server, _):
        return await _noticed(client, after, lambda: server.signal(signal.SIGKILL))


async def _frozen(run: Run, engine: str, after: float) -> float:
    async with _linked(run, engine) as (client, server, stack):
        stack.callback(server.signal, signal.SIGCONT)  # or it could not be asked to end
        return await _noticed(client, after, lambda: server.signal(signal.SIGSTOP))


async def _silent(run: Run, engine: str, after: float) -> float:
    where = await run.where(engine)
    async with (
        forwarding(where.address) as forwarder,
        mesh.client(
            *(run.authority, where, mesh.link_config(engine)), addresses=(forwarder.address,)
        ) as client,
    ):

        def cut() -> None:
            forwarder.is_silent = True

        return await _noticed(client, after, cut)


@contextlib.asynccontextmanager
async def _linked(
    run: Run, engine: str
) -> AsyncIterator[tuple[mesh.Client, Other, contextlib.ExitStack]]:
    """A client of a server of its own, and what is to be done before that is ended."""
    async with run.server(engine) as (where, server):
        with contextlib.ExitStack() as stack:
            async with mesh.client(run.authority, where, mesh.link_config(engine)) as client:
                yield client, server, stack


async def _noticed(client: mesh.Client, after: float, fault: Callable[[], None]) -> float:
    """Seconds from `fault()` until a call in flight fails because the link is gone."""
    ended = 0.0

    async def call() -> None:
        nonlocal ended
        try:
            await client.stub.hang()
        except LatticaError:  # at the latest the call's own deadline
            ended = time.perf_counter()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await anyio.sleep(after)
        start = time.perf_counter()
        fault()
    return ended - start
