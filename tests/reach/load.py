"""Calls and a stream that run while paths come and go: was all done once, and what gaps?"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from lattica.rpc import Buffer, method
from tests.reach.peers import ReachPeer

RATE = 200.0  # calls a second
PIECE = 4096  # bytes
PIECES_EVERY = 0.02  # seconds
TIMEOUT = 60.0


class Ledger:
    """Counts what is asked of it."""

    def __init__(self) -> None:
        self.runs: Counter[int] = Counter()

    @method()
    async def note(self, number: int) -> int:
        """Runs once for each number, one hopes."""
        self.runs[number] += 1
        return number

    @method()
    async def told(self) -> dict[int, int]:
        """How often each number ran."""
        return dict(self.runs)

    @method()
    async def flow(self, pieces: int) -> AsyncIterator[Buffer]:
        """A stream whose every byte is known."""
        for number in range(pieces):
            yield Buffer(piece(number))
            await anyio.sleep(PIECES_EVERY)


def piece(number: int) -> bytes:
    return number.to_bytes(8, "big") * (PIECE // 8)


class Load:
    """What one peer asked of another."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.sent = 0
        self.done: list[float] = []
        self.pieces: list[float] = []
        self.errors: list[BaseException] = []

    def gap(self, since: float = 0.0) -> float:
        """The longest pause between answers, in seconds."""
        times = [each for each in self.done if each >= since]
        return max(after - before for before, after in itertools.pairwise(times))

    def check(self) -> None:
        """Every call had one outcome, ran once, and every byte of the stream came."""
        assert not self.errors, self.errors[:3]
        assert len(self.done) == self.sent
        assert set(self.ledger.runs) == set(range(self.sent))
        assert set(self.ledger.runs.values()) == {1}


@asynccontextmanager
async def load(caller: ReachPeer, callee: ReachPeer, seconds: float) -> AsyncIterator[Load]:
    """Calls and a stream for so long; on exit they have ended."""
    ledger = Ledger()
    callee.rpc.register("ledger", ledger)
    stub = caller.rpc.client(callee.id, Ledger, "ledger", timeout=TIMEOUT)
    made = Load(ledger)
    pieces = int(seconds / PIECES_EVERY)

    async def call(number: int) -> None:
        try:
            assert await stub.note(number) == number
            made.done.append(anyio.current_time())
        except BaseException as error:
            made.errors.append(error)
            raise

    async def stream() -> None:
        async for each in stub.flow(pieces):
            assert bytes(each) == piece(len(made.pieces))
            made.pieces.append(anyio.current_time())
        assert len(made.pieces) == pieces

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream)

        async def calls() -> None:
            end = anyio.current_time() + seconds
            while anyio.current_time() < end:
                tasks.start_soon(call, made.sent)
                made.sent += 1
                await anyio.sleep(1 / RATE)

        tasks.start_soon(calls)
        yield made
    callee.rpc.unregister("ledger")
