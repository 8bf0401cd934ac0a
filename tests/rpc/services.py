"""Handlers that tests call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import anyio

from lattica.errors import BusyError, NameTakenError
from lattica.identity import grants
from lattica.rpc import Buffer, caller, method, trace_id


class Bench:
    """Does what the test asks, and tells what became of it."""

    def __init__(self) -> None:
        self.started = anyio.Event()
        self.cancelled = anyio.Event()
        self.release = anyio.Event()
        self.order: list[int] = []
        self.produced = 0
        self.running = 0

    @method(scope=None)
    async def echo(self, data: Buffer) -> Buffer:
        return data

    @method()
    async def add(self, a: int, b: int = 1) -> int:
        return a + b

    @method(scope=grants.SUBMIT)
    async def submit(self) -> str:
        return "done"

    @method()
    async def text(self, size: int) -> str:
        return "x" * size

    @method()
    async def measure(self, text: str) -> int:
        return len(text)

    @method()
    async def note(self, n: int) -> None:
        self.order.append(n)

    @method()
    async def hang(self) -> None:
        self.started.set()
        self.running += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()  # a clean-up that waits
            self.cancelled.set()
            raise
        finally:
            self.running -= 1

    @method()
    async def wait(self) -> str:
        self.started.set()
        await self.release.wait()
        return "released"

    @method()
    async def cancel_itself(self) -> None:
        raise asyncio.CancelledError

    @method()
    async def leave(self) -> None:
        raise SystemExit(3)

    @method()
    async def fail(self, text: str) -> None:
        raise ValueError(text)

    @method()
    async def taken(self) -> None:
        raise NameTakenError("the name is taken")

    @method()
    async def busy(self) -> None:
        raise BusyError("try later", retry_after=1.5)

    @method()
    async def wrong(self) -> int:
        return "not a number"  # type: ignore[return-value]

    @method()
    async def who(self) -> tuple[str, bool, bytes]:
        call = caller()
        return call.name, call.deadline < float("inf"), trace_id.get()

    @method()
    async def count(self, n: int, fail_at: int = -1) -> AsyncIterator[int]:
        try:
            for i in range(n):
                if i == fail_at:
                    raise ValueError("enough")
                self.produced += 1
                yield i
        except BaseException:
            self.cancelled.set()
            raise

    @method()
    async def parts(self, n: int, size: int) -> AsyncIterator[Buffer]:
        try:
            for i in range(n):
                self.produced += 1
                yield Buffer(bytes([i % 256]) * size)
        finally:
            self.cancelled.set()

    @method()
    async def silent(self) -> AsyncIterator[int]:
        try:
            self.started.set()
            yield 0
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    @method()
    async def wrong_items(self) -> AsyncIterator[int]:
        yield 1
        yield "two"  # type: ignore[misc]

    @method()
    async def scope_user(self) -> AsyncIterator[int]:
        with anyio.move_on_after(5):
            yield 1
            yield 2
