"""Many calls of every kind, and a ledger at each end that tells whether their outcomes are true."""

from __future__ import annotations

import asyncio
import itertools
import random
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from enum import Enum
from typing import Any, TypeVar

import msgspec

from lattica.errors import (
    BusyError,
    CallLostError,
    DeadlineError,
    LinkError,
    RemoteError,
    StreamTruncatedError,
)
from lattica.rpc import Buffer, method
from tests.faults.stack import Peer

T = TypeVar("T")
SERVICE = "ledger"


class Ledger:
    """A service that remembers which calls ran, and how often."""

    def __init__(self) -> None:
        self.ran: Counter[int] = Counter()
        self.running = 0
        self.short: list[int] = []  # calls whose items ended too soon, and without an error

    @method()
    async def add(self, call: int, number: int) -> int:
        self.ran[call] += 1
        return number + 1

    @method()
    async def wait(self, call: int, seconds: float) -> int:
        self.ran[call] += 1
        self.running += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self.running -= 1
        return call

    @method()
    async def fail(self, call: int) -> int:
        self.ran[call] += 1
        raise ValueError(f"call {call}")

    @method()
    async def echo(self, call: int, data: Buffer) -> Buffer:
        self.ran[call] += 1
        return data

    @method()
    async def count(self, call: int, items: int) -> AsyncIterator[int]:
        self.ran[call] += 1
        self.running += 1
        try:
            for item in range(items):
                yield item
        finally:
            self.running -= 1

    @method()
    async def drip(self, call: int, items: int, pause: float) -> AsyncIterator[int]:
        self.ran[call] += 1
        for item in range(items):
            yield item
            await asyncio.sleep(pause)

    @method()
    async def parts(self, call: int, items: int, size: int) -> AsyncIterator[Buffer]:
        self.ran[call] += 1
        for item in range(items):
            yield Buffer(bytes([item % 256]) * size)

    @method()
    async def take(self, call: int, expected: int, items: AsyncIterator[int]) -> list[int]:
        self.ran[call] += 1
        self.running += 1
        try:
            got = [item async for item in items]
        finally:
            self.running -= 1
        if len(got) != expected:
            self.short.append(call)
        return got

    @method()
    async def first(self, call: int, wanted: int, items: AsyncIterator[int]) -> list[int]:
        self.ran[call] += 1
        got: list[int] = []
        async for item in items:
            got.append(item)
            if len(got) == wanted:
                return got
        self.short.append(call)
        return got

    @method()
    async def checksum(self, call: int, parts: AsyncIterator[Buffer]) -> int:
        self.ran[call] += 1
        crc = 0
        async for part in parts:
            crc = zlib.crc32(part.data, crc)
        return crc

    @method()
    async def mirror(
        self, call: int, expected: int, items: AsyncIterator[int]
    ) -> AsyncIterator[int]:
        self.ran[call] += 1
        self.running += 1
        seen = 0
        try:
            async for item in items:
                seen += 1
                yield item
        finally:
            self.running -= 1
        if seen != expected:
            self.short.append(call)


class OwnError(Exception):
    """What a caller's iterator of items raises."""


class Kind(Enum):
    """The outcomes that a call can have."""

    VALUE = "value"
    REMOTE = "remote error"
    NOT_RUN = "the link: has not run"
    MAY_HAVE_RUN = "the link: may have run"
    DEADLINE = "deadline"
    BUSY = "busy"
    TRUNCATED = "a stream cut short"
    CANCELLED = "cancelled here"
    OWN = "the caller's own iterator failed"
    WRONG = "an error that the handler did not raise"


class Outcome(msgspec.Struct, frozen=True):
    """What a caller saw of one call."""

    call: int
    kind: Kind


class Caller:
    """Makes calls from one peer to another and keeps their outcomes."""

    def __init__(self, here: Peer, there: Peer, ledger: Ledger, *, timeout: float) -> None:
        self.stub = here.client(there, Ledger, SERVICE, timeout=timeout)
        self.ledger = ledger
        self.outcomes: list[Outcome] = []
        self._next = 0

    async def make(self, step: Callable[[Ledger, int], Awaitable[None]]) -> None:
        """Make one call with `step`, which checks a value that it gets."""
        call, self._next = self._next, self._next + 1
        self.outcomes.append(Outcome(call, await _kind(step(self.stub, call))))

    def check(self) -> Counter[Kind]:
        """Hold the outcomes against the ledger; how many there are of each kind."""
        assert not self.ledger.short, "a stream that was cut looked like one that ended"
        for outcome in self.outcomes:
            ran = self.ledger.ran[outcome.call]
            assert outcome.kind is not Kind.WRONG, outcome
            assert ran <= 1, f"{outcome} ran {ran} times"
            if outcome.kind in (Kind.NOT_RUN, Kind.BUSY):
                assert not ran, f"{outcome}, but it ran"
            elif outcome.kind in (Kind.VALUE, Kind.REMOTE):
                assert ran, f"{outcome}, but it never ran"
        assert len({outcome.call for outcome in self.outcomes}) == len(self.outcomes)
        return Counter(outcome.kind for outcome in self.outcomes)


async def _kind(step: Awaitable[None]) -> Kind:
    try:
        await step
    except CallLostError as error:
        return Kind.MAY_HAVE_RUN if error.may_have_run else Kind.NOT_RUN
    except StreamTruncatedError:
        return Kind.TRUNCATED
    except DeadlineError:
        return Kind.DEADLINE
    except BusyError:
        return Kind.BUSY
    except OwnError:
        return Kind.OWN
    except RemoteError as error:
        return Kind.REMOTE if error.type_name == "ValueError" else Kind.WRONG
    except LinkError:
        return Kind.NOT_RUN  # no link could be made
    except asyncio.CancelledError:
        return Kind.CANCELLED
    return Kind.VALUE


# ------------------------------------------------------------------- the steps


async def add(stub: Ledger, call: int) -> None:
    """A small call."""
    assert await stub.add(call, call * 7) == call * 7 + 1


async def wait(stub: Ledger, call: int) -> None:
    """A call that takes a while at the other end."""
    assert await stub.wait(call, 0.02 * (call % 17)) == call


async def fail(stub: Ledger, call: int) -> None:
    """A call whose handler raises."""
    await stub.fail(call)
    raise AssertionError("it should have raised")


async def echo(stub: Ledger, call: int) -> None:
    """A body each way, of a few bytes up to above a window."""
    size = (17, 20_000, 90_000, 300_000)[call % 4]
    data = random.Random(call).randbytes(size)
    assert bytes((await stub.echo(call, Buffer(data))).data) == data


async def count(stub: Ledger, call: int) -> None:
    """A stream of small items: all of them, in order, or an error."""
    items = 50 * (call % 5)
    assert [item async for item in stub.count(call, items)] == list(range(items))


async def parts(stub: Ledger, call: int) -> None:
    """A stream of buffers."""
    got = [bytes(item.data) async for item in stub.parts(call, 6, 20_000)]
    assert got == [bytes([item]) * 20_000 for item in range(6)]


async def leave(stub: Ledger, call: int) -> None:
    """A stream that its reader leaves in the middle."""
    items: Any = stub.count(call, 10_000)
    async for item in items:
        if item == 20:
            break
    await items.aclose()


async def give_up(stub: Ledger, call: int) -> None:
    """A call that its caller cancels after a while."""
    task: asyncio.Task[int] = asyncio.ensure_future(stub.wait(call, 60.0))  # type: ignore[arg-type]
    await asyncio.sleep(0.01 * (call % 13))
    task.cancel()
    await task


async def send(stub: Ledger, call: int) -> None:
    """Small items to the handler: all of them, in order, or an error."""
    items = list(range(50 * (call % 5)))
    assert await stub.take(call, len(items), _each(items)) == items


async def send_parts(stub: Ledger, call: int) -> None:
    """Buffers to the handler."""
    data = random.Random(call).randbytes(120_000)
    parts = [Buffer(data[at : at + 20_000]) for at in range(0, len(data), 20_000)]
    assert await stub.checksum(call, _each(parts)) == zlib.crc32(data)


async def send_too_many(stub: Ledger, call: int) -> None:
    """Items without end, of which the handler takes some."""
    assert await stub.first(call, 100, _each(itertools.count())) == list(range(100))


async def break_off(stub: Ledger, call: int) -> None:
    """Items whose iterator fails."""
    await stub.take(call, -1, _each(range(call % 60), fails=True))
    raise AssertionError("it should have raised")


async def exchange(stub: Ledger, call: int) -> None:
    """Items both ways at once."""
    items = list(range(300))
    assert [item async for item in stub.mirror(call, len(items), _each(items))] == items


async def give_up_sending(stub: Ledger, call: int) -> None:
    """Items that their sender cancels after a while."""
    work = stub.take(call, -1, _each(itertools.count(), pause=0.005))
    task: asyncio.Task[list[int]] = asyncio.ensure_future(work)  # type: ignore[arg-type]
    await asyncio.sleep(0.01 * (call % 13))
    task.cancel()
    await task


async def _each(items: Iterable[T], *, pause: float = 0.0, fails: bool = False) -> AsyncIterator[T]:
    for item in items:
        yield item
        if pause:
            await asyncio.sleep(pause)
    if fails:
        raise OwnError


STEPS = (
    *(add, send, add, add, wait, exchange, fail, echo, send_parts),
    *(add, count, break_off, parts, leave, send_too_many, give_up, give_up_sending),
)


async def run(caller: Caller, calls: int, *, spread: float, seed: int) -> None:
    """Make `calls` calls of all kinds, begun at random within `spread` seconds."""
    chance = random.Random(seed)

    async def begin(step: Callable[[Ledger, int], Awaitable[None]], delay: float) -> None:
        await asyncio.sleep(delay)
        await caller.make(step)

    async with asyncio.TaskGroup() as tasks:
        for index in range(calls):
            step = STEPS[index % len(STEPS)]
            tasks.create_task(begin(step, spread * chance.random()))
