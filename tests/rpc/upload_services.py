"""Handlers that take items from their callers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator

import anyio

from lattica.errors import LatticaError
from lattica.rpc import Buffer, method


class Intake:
    """Takes items in, and tells what became of them."""

    def __init__(self) -> None:
        self.started = anyio.Event()
        self.ended = anyio.Event()
        self.release = anyio.Event()
        self.errors: list[BaseException] = []
        self.taken = 0

    @contextlib.asynccontextmanager
    async def _noted(self) -> AsyncIterator[None]:
        self.started.set()
        try:
            yield
        except BaseException as error:
            self.errors.append(error)
            raise
        finally:
            self.ended.set()

    @method()
    async def ping(self) -> int:
        return 1

    @method()
    async def total(self, items: AsyncIterator[int]) -> int:
        async with self._noted():
            total = 0
            async for item in items:
                self.taken += 1
                total += item
            return total

    @method()
    async def join(self, sep: bytes, parts: AsyncIterable[Buffer], *, end: bytes = b"") -> Buffer:
        return Buffer(sep.join([bytes(part) async for part in parts]) + end)

    @method()
    async def first(self, items: AsyncIterator[int], n: int) -> list[int]:
        """Returns before the caller has sent all."""
        async with self._noted():
            got: list[int] = []
            async for item in items:
                got.append(item)
                if len(got) == n:
                    break
            return got

    @method()
    async def twice(self, items: AsyncIterator[int]) -> tuple[int, int]:
        """Leaves the loop in the middle, and goes on with another."""
        first = 0
        async for item in items:
            first += item
            if item == 2:
                break
        return first, sum([item async for item in items])

    @method()
    async def forgiving(self, items: AsyncIterator[int]) -> str:
        async with self._noted():
            try:
                return str([item async for item in items])
            except LatticaError as error:
                self.errors.append(error)
                return f"{type(error).__name__}: {error}"

    @method()
    async def slow(self, items: AsyncIterator[Buffer]) -> int:
        """Takes nothing before it is told to."""
        async with self._noted():
            await self.release.wait()
            return sum([len(item) async for item in items])

    @method()
    async def hang(self, items: AsyncIterator[int]) -> None:
        async with self._noted():
            async for _ in items:
                self.taken += 1
            await asyncio.Event().wait()

    @method()
    async def fail(self, items: AsyncIterator[int]) -> int:
        async with self._noted():
            async for item in items:
                raise ValueError(f"no {item}")
            return 0

    @method()
    async def double(self, items: AsyncIterator[int]) -> AsyncIterator[int]:
        async with self._noted():
            async for item in items:
                self.taken += 1
                yield 2 * item

    @method()
    async def after(self, items: AsyncIterator[int]) -> AsyncIterator[int]:
        """Answers once all has come."""
        got = [item async for item in items]
        for item in got:
            yield item

    @method()
    async def some(self, items: AsyncIterator[int], n: int) -> AsyncIterator[int]:
        """Ends before the caller has sent all."""
        async with self._noted():
            async for item in items:
                if item == n:
                    return
                yield item


class Producer:
    """Items for a call; notes how many were made, and how it ended."""

    def __init__(self) -> None:
        self.made = 0
        self.ended = anyio.Event()

    async def count(self, n: int, *, fail_at: int = -1) -> AsyncIterator[int]:
        try:
            for i in range(n):
                if i == fail_at:
                    raise KeyError("my own")
                self.made += 1
                yield i
        finally:
            self.ended.set()

    async def parts(self, n: int, size: int) -> AsyncIterator[Buffer]:
        try:
            for i in range(n):
                self.made += 1
                yield Buffer(bytes((i % 256,)) * size)
        finally:
            self.ended.set()

    async def silent(self, n: int = 1) -> AsyncIterator[int]:
        """Yields a few, and then waits without end."""
        try:
            for i in range(n):
                self.made += 1
                yield i
            await asyncio.Event().wait()
        finally:
            self.ended.set()
