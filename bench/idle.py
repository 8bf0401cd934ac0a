"""1,000 idle links to one peer: what each costs that peer.

The links come from one other process, each from a peer with a key and a socket of its
own. `idle_links` is the growth of the served peer's resident memory for each link, in KB
(10³ bytes), `idle_links_cpu` the share of a core that it then takes while nobody calls,
heartbeats included: the median over windows of the kernel's account of its CPU time.

As the other process, `python -m bench.idle ENGINE SEED WHERE COUNT` dials, prints a line
and keeps the links until its standard input ends.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Collection

import anyio
import anyio.to_thread
import psutil

from bench import mesh
from bench.peak import status
from bench.processes import other
from bench.rows import Row, row
from bench.run import Run
from lattica.identity import wire
from lattica.identity.keys import Identity

MEASURES = ("idle_links", "idle_links_cpu")
COUNT = 1000
AT_ONCE = 8  # dials
SETTLE = 2.0  # seconds between the last dial and the first window
DIAL_TIMEOUT = 120.0  # seconds for all


async def rows(run: Run, wanted: Collection[str], *, count: int = COUNT) -> list[Row]:
    """The rows among `wanted`."""
    result: list[Row] = []
    for engine in run.engines:
        run.tell(f"{count} idle links: {engine}")
        async with run.server(engine) as (where, server):
            before = status("VmRSS", server.pid)
            words = (engine, run.seed.hex(), wire.encode(where).hex(), str(count))
            loop = ("--uvloop",) if run.options.uvloop else ()
            async with other("bench.idle", *words, *loop) as dialer:
                opened = int(await dialer.line(DIAL_TIMEOUT))
                assert opened == count, f"{opened} of {count} links came up"
                await anyio.sleep(SETTLE)
                memory = (status("VmRSS", server.pid) - before) / count / 1000
                share = 100 * await _cpu_share(server.pid, run.rounds, 1.5 * run.seconds)
        note = "" if count == COUNT else f"{count} links"
        result.append(row("idle_links", engine, memory, "KB/link", note=note))
        result.append(row("idle_links_cpu", engine, share, "% of a core", note=note))
    return [each for each in result if each.measure in wanted]


async def _cpu_share(pid: int, windows: int, seconds: float) -> float:
    process = psutil.Process(pid)
    shares: list[float] = []

    def spent() -> float:
        times = process.cpu_times()
        return float(round(times.user + times.system, 3))  # ticks, without round-off

    for _ in range(windows):
        start, before = time.perf_counter(), spent()
        await anyio.sleep(seconds)
        shares.append((spent() - before) / (time.perf_counter() - start))
    return statistics.median(shares)


async def main(engine: str, seed: str, where: str, count: str) -> None:
    """The other process."""
    server = wire.decode(bytes.fromhex(where), mesh.Where)
    authority, config = Identity(bytes.fromhex(seed)), mesh.link_config(engine)
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(mesh.client(authority, server, config))
            for _ in range(int(count))
        ]
        waiting = iter(clients)

        async def dial() -> None:
            for client in waiting:
                await client.links.connect(server.peer)

        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(dial)
        print(sum(client.links.find(server.peer) is not None for client in clients), flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


if __name__ == "__main__":
    words = sys.argv[1:5]
    anyio.run(lambda: main(*words), backend_options={"use_uvloop": "--uvloop" in sys.argv})
