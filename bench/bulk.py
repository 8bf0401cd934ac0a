"""One long stream: MB/s (10⁶ bytes) from the server to the client.

Ours is an async generator of 256 KiB `Buffer`s, read by `async for`; the reference is a
grpc.aio server stream of 256 KiB messages. The rate is that of what the reader took
between the first fifth of the time and its end; the stream is then cancelled. The three
rows differ only in how the link's packets go: with the datagram size that was found for
the path, held to 1,452 B, and in TCP frames.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from functools import partial

from bench import grpc_peer
from bench.loops import stream_rate
from bench.rows import Measure, Row, row
from bench.run import Run

PATHS = {"bulk_quic": "auto", "bulk_quic_1452": "1452", "bulk_tcp": "tcp"}
MEASURES = tuple(PATHS)
ITEM = 262_144


async def rows(run: Run, wanted: Collection[str]) -> list[Row]:
    """The rows among `wanted`; the reference is taken once a round."""
    paths = {measure: path for measure, path in PATHS.items() if measure in wanted}
    contestants: dict[tuple[str, str], Measure] = {}
    for measure, path in paths.items():
        for engine, client in zip(run.engines, await run.clients(path), strict=True):
            contestants[measure, engine] = partial(
                megabytes, partial(client.stub.bulk, ITEM), run.seconds
            )
    if (grpc := await run.grpc()) is not None:
        contestants["", ""] = partial(megabytes, partial(grpc.stream, ITEM), run.seconds)
    values = await run.medians("one long stream", list(contestants.values()))
    found = dict(zip(contestants, values, strict=True))
    reference = found.pop(("", ""), None)
    return [
        row(measure, engine, value, "MB/s", reference=reference, against=grpc_peer.NAME)
        for (measure, engine), value in found.items()
    ]


async def megabytes(open_stream: Callable[[], AsyncIterator[object]], seconds: float) -> float:
    """The rate of a stream of `ITEM`s."""
    return ITEM * await stream_rate(open_stream, seconds=seconds) / 1e6
