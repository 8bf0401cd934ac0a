"""Actor calls between a driver and a peer in another process, beside a local process pool."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

import anyio
import anyio.to_thread

import lattica
from bench.processes import other
from bench.rows import Measure, Row, medians, row
from bench.targets import DEFAULT_ENGINE

START_TIMEOUT = 30.0
POOL = "ProcessPoolExecutor, 1 local worker"
ANY = "-"


@lattica.remote
class Adder:
    """Keeps a sum."""

    def __init__(self) -> None:
        self.total = 0

    def add(self, amount: int) -> int:
        """The sum so far."""
        self.total += amount
        return self.total


def _add(amount: int) -> int:
    return amount + 1


async def rows(*, rounds: int = 5, calls: int = 1500) -> list[Row]:
    """The table's second part."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        up = ("lattica", "up", "--json", "--home", home, "--listen", "127.0.0.1:0")
        async with other(*up, "--name", "bench-host") as host:
            ticket = str(json.loads(await host.line())["ticket"])
            result = await anyio.to_thread.run_sync(_measure, ticket, rounds, calls)
    result.append(await imported(rounds))
    sys.stderr.write(f"actors: {time.perf_counter() - started:.0f} s\n")
    return result


async def imported(rounds: int) -> Row:
    """How long a fresh interpreter takes until `@lattica.remote` can be used."""
    ours = partial(_import, "import lattica; lattica.remote, lattica.ObjectRef")
    value, reference = await medians([ours, partial(_import, "import asyncio")], rounds=rounds)
    measure = "import lattica"
    return row(measure, ANY, value, "ms", reference=reference, against="import asyncio")


async def _import(code: str) -> float:
    timed = f"import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)"
    done = await anyio.run_process([sys.executable, "-c", timed])
    return float(done.stdout) * 1000


def _measure(ticket: str, rounds: int, calls: int) -> list[Row]:
    with (
        lattica.init(ticket, name="bench-driver"),
        concurrent.futures.ProcessPoolExecutor(1) as pool,
    ):
        actor = Adder.options(num_cpus=0.1).remote()  # type: ignore[attr-defined]
        lattica.get(actor.add.remote(1), timeout=START_TIMEOUT)
        pool.submit(_add, 1).result()

        async def pipelined() -> float:
            return _rate(calls, lambda: lattica.get([actor.add.remote(1) for _ in range(calls)]))

        async def pooled() -> float:
            wait = concurrent.futures.wait
            return _rate(calls, lambda: wait([pool.submit(_add, 1) for _ in range(calls)]))

        async def one() -> float:
            return _latency(lambda: lattica.get(actor.add.remote(1)))

        async def one_pooled() -> float:
            return _latency(lambda: pool.submit(_add, 1).result())

        async def both() -> list[Row]:
            return [
                await _beside("actor calls, in bursts", "calls/s", pipelined, pooled, rounds),
                await _beside("actor call, one at a time", "ms", one, one_pooled, rounds),
            ]

        return asyncio.run(both())


async def _beside(title: str, unit: str, ours: Measure, theirs: Measure, rounds: int) -> Row:
    value, reference = await medians([ours, theirs], rounds=rounds)
    return row(title, DEFAULT_ENGINE, value, unit, reference=reference, against=POOL)


def _rate(calls: int, burst: Callable[[], object]) -> float:
    start = time.perf_counter()
    burst()
    return calls / (time.perf_counter() - start)


def _latency(call: Callable[[], object], count: int = 200) -> float:
    samples = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return sorted(samples)[count // 2] * 1000
