"""Long fat paths: 100 Mbit/s and 100 ms there and back, emulated in one process.

The path is `lattica.path.emulator` (its delay, rate and loss are measured back by
`tests/path/test_emulator.py`), each direction with a line of its own and a queue of 100 ms.
Time is virtual: figures say what congestion control and windows make of the path, not what
the processor does. The reference is the line's rate, in bytes of UDP payload, or
the bound that the delay sets. Figures are taken after `WARM_UP`; a run is seeded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any

import anyio
import anyio.to_thread

from bench.mesh import TIMEOUT, membership
from bench.rows import Row, row
from bench.run import Run
from bench.services import NAME, Service
from lattica.config import LinkConfig
from lattica.identity.keys import Identity
from lattica.link.endpoint import Endpoint
from lattica.path.memory import Conditions, PacketNetwork
from lattica.rpc import Buffer, Rpc
from lattica.virtual_loop import VirtualLoop

MEASURES = ("wan_clean", "wan_loss1", "wan_echo128_c256", "wan_echo256k_c16")
RATE = 12_500_000.0  # bytes/s: 100 Mbit/s
RTT = 0.1  # seconds
QUEUE = int(RATE * RTT)  # bytes
WARM_UP = 5.0  # virtual seconds before a figure is taken
SECONDS = 10.0  # virtual seconds that a figure is taken over
ITEM = 262_144
FULL = 0.8  # of the rate: the start is over
STEP = 0.1  # virtual seconds between looks
LINE = "the line's rate"


class Count:
    """What has come so far, looked at as time passes."""

    def __init__(self) -> None:
        self.total = 0
        self._looks: list[tuple[float, int]] = []

    async def watch(self) -> None:
        """Look, until the time is over."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while loop.time() - begun < WARM_UP + SECONDS:
            self._looks.append((loop.time() - begun, self.total))
            await anyio.sleep(STEP)
        self._looks.append((loop.time() - begun, self.total))

    def rate(self) -> float:
        """Per virtual second, after the warm-up."""
        (start, before), (end, after) = (
            next(each for each in self._looks if each[0] >= WARM_UP),
            self._looks[-1],
        )
        return (after - before) / (end - start)

    def start(self, rate: float) -> float | None:
        """Seconds until `FULL` of `rate` was reached, over two looks; None if it never was."""
        for (begin, before), (end, after) in zip(self._looks, self._looks[2:], strict=False):
            if (after - before) / (end - begin) >= FULL * rate:
                return end
        return None


Load = Callable[[Service, Count], Coroutine[Any, Any, None]]


async def rows(run: Run, wanted: Collection[str]) -> list[Row]:
    """The rows among `wanted`, one run for each engine."""
    result = []
    for measure in MEASURES:
        for engine in run.engines:
            if measure in wanted:
                run.tell(f"{measure}: {engine}")
                # A loop of its own, whose time jumps.
                result.append(await anyio.to_thread.run_sync(partial(_row, measure, engine)))
    return result


def _row(measure: str, engine: str) -> Row:
    loss = 0.01 if measure == "wan_loss1" else 0.0
    load, unit, reference, against = _LOADS[measure]
    count: Count = anyio.run(
        partial(_measure, engine, loss, load), backend_options={"loop_factory": VirtualLoop}
    )
    value, started = count.rate(), count.start(reference)
    start = "never" if started is None else f"in {started:.1f} s"
    note = (
        f"virtual time, one seeded run; {SECONDS:g} s after {WARM_UP:g} s; "
        f"{FULL:.0%} of the reference was reached {start}"
    )
    scale = 1e6 if unit == "MB/s" else 1.0
    return row(
        measure,
        engine,
        value / scale,
        unit,
        reference=reference / scale,
        against=against,
        note=note,
    )


async def _measure(engine: str, loss: float, load: Load) -> Count:
    count = Count()
    async with _stub(engine, loss) as stub, anyio.create_task_group() as tasks:
        tasks.start_soon(load, stub, count)
        await count.watch()
        tasks.cancel_scope.cancel()
    return count


@contextlib.asynccontextmanager
async def _stub(engine: str, loss: float) -> AsyncIterator[Service]:
    """A client's stub of a server that is at the other end of the path."""
    path = Conditions(latency=RTT / 2, rate=RATE, queue=QUEUE, loss=loss)
    network = PacketNetwork(path, seed=1)
    authority, config = Identity.generate(), LinkConfig(engine=engine)
    async with contextlib.AsyncExitStack() as stack:
        peers = []
        for name in ("server", "client"):
            identity = Identity.generate()
            links = Endpoint(
                identity,
                membership(authority, identity.peer_id),
                network.path(name),
                config=config,
            )
            await stack.enter_async_context(links)
            peers.append((links, await stack.enter_async_context(Rpc(links, name=name))))
        (at, server), (_, client) = peers
        server.register(NAME, Service())
        client.links.learn(server.local, at.addresses)
        yield client.client(server.local, Service, NAME, timeout=TIMEOUT)


async def _bulk(stub: Service, count: Count) -> None:
    async with aclosing(stub.bulk(ITEM)) as stream:  # type: ignore[type-var]
        async for item in stream:
            count.total += len(item)


async def _echo(size: int, in_flight: int, weight: int, stub: Service, count: Count) -> None:
    data = Buffer(bytes(size))

    async def caller() -> None:
        while True:
            await stub.echo(data)
            count.total += weight

    async with anyio.create_task_group() as tasks:
        for _ in range(in_flight):
            tasks.start_soon(caller)


_LOADS: dict[str, tuple[Load, str, float, str]] = {
    "wan_clean": (_bulk, "MB/s", RATE, LINE),
    "wan_loss1": (_bulk, "MB/s", RATE, LINE),
    "wan_echo128_c256": (partial(_echo, 128, 256, 1), "calls/s", 256 / RTT, "256 / RTT"),
    "wan_echo256k_c16": (partial(_echo, ITEM, 16, ITEM), "MB/s", RATE, LINE),
}
