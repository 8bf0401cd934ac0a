"""Calls: 128 B at 1, 64 and 1,024 in flight, and 256 KB up and both ways.

One link (one channel, one connection) is made, warmed up and kept. A caller sends its
next call when the answer to the one before has come; the body is the same object each
time, on both sides. MB are 10⁶ bytes. `echo256k_c8` counts both ways.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from bench import grpc_peer
from bench.loops import Call, p50, rate
from bench.rows import Measure, Row, row
from bench.run import Run
from lattica.rpc import Buffer

MEASURES = (
    "echo128_c64",
    "echo128_c64_floor",
    "echo128_c1_p50",
    "echo128_c1024",
    "upload256k_c8",
    "echo256k_c8",
)
SMALL = b"x" * 128
LARGE = b"x" * 262_144
FLOOR = "TCP + msgspec, not encrypted"


async def rows(run: Run, wanted: Collection[str]) -> list[Row]:
    """The rows among `wanted`."""
    result: list[Row] = []
    if {"echo128_c64", "echo128_c64_floor", "echo128_c1024"} & set(wanted):
        result += await _small(run, wanted)
    if "echo128_c1_p50" in wanted:
        result += await _latency(run)
    for name, both_ways in (("upload256k_c8", False), ("echo256k_c8", True)):
        if name in wanted:
            result += await _large(run, name, both_ways=both_ways)
    return result


async def _small(run: Run, wanted: Collection[str]) -> list[Row]:
    """The rates are taken once a round and stand in every row that needs them."""
    calls: dict[str, tuple[Call, int]] = {}
    for engine, client in zip(run.engines, await run.clients(), strict=True):
        calls[engine] = partial(client.stub.repeat, SMALL), 64
        if "echo128_c1024" in wanted:
            calls[engine + " c1024"] = partial(client.stub.repeat, SMALL), 1024
    if "echo128_c64" in wanted and (grpc := await run.grpc()) is not None:
        calls[grpc_peer.NAME] = partial(grpc.echo, SMALL), 64
    if "echo128_c64_floor" in wanted:
        calls[FLOOR] = partial((await run.floor()).echo, SMALL), 64
    contestants = [
        partial(rate, call, in_flight=in_flight, seconds=run.seconds)
        for call, in_flight in calls.values()
    ]
    found = dict(zip(calls, await run.medians("128 B calls/s", contestants), strict=True))
    result = []
    for measure, against in (("echo128_c64", grpc_peer.NAME), ("echo128_c64_floor", FLOOR)):
        if measure in wanted:
            result += [
                row(
                    *(measure, engine, found[engine], "calls/s"),
                    reference=found.get(against),
                    against=against,
                )
                for engine in run.engines
            ]
    if "echo128_c1024" in wanted:
        result += [
            row(
                *("echo128_c1024", engine, found[engine + " c1024"], "calls/s"),
                reference=found[engine],
                against="own c64",
            )
            for engine in run.engines
        ]
    return result


async def _latency(run: Run) -> list[Row]:
    count = max(20, int(500 * run.seconds))
    calls: list[Call] = [partial(client.stub.repeat, SMALL) for client in await run.clients()]
    if (grpc := await run.grpc()) is not None:
        calls.append(partial(grpc.echo, SMALL))
    return await against_grpc(
        run, "echo128_c1_p50", "ms", [partial(p50, call, count=count) for call in calls]
    )


async def _large(run: Run, measure: str, *, both_ways: bool) -> list[Row]:
    body = Buffer(LARGE)
    calls: list[Call] = [
        partial(client.stub.echo if both_ways else client.stub.take, body)
        for client in await run.clients()
    ]
    if (grpc := await run.grpc()) is not None:
        calls.append(partial(grpc.echo if both_ways else grpc.take, LARGE))
    size = len(LARGE) * (2 if both_ways else 1)

    async def megabytes(call: Call) -> float:
        return size * await rate(call, in_flight=8, seconds=run.seconds) / 1e6

    return await against_grpc(run, measure, "MB/s", [partial(megabytes, call) for call in calls])


async def against_grpc(run: Run, measure: str, unit: str, contestants: list[Measure]) -> list[Row]:
    """Rows of one contestant for each engine and, last and if installed, grpc.aio."""
    found = await run.medians(measure, contestants)
    reference = found[len(run.engines)] if len(found) > len(run.engines) else None
    return [
        row(measure, engine, value, unit, reference=reference, against=grpc_peer.NAME)
        for engine, value in zip(run.engines, found[: len(run.engines)], strict=True)
    ]
