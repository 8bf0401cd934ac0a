"""How far a stream may run ahead of its consumer, seen from the worker."""

from __future__ import annotations

import asyncio
import threading


class ThreadWindow:
    """Credit for a generator that runs on a thread."""

    def __init__(self, credit: int) -> None:
        self._credit = credit
        self._is_closed = False
        self._changed = threading.Condition()

    def take(self) -> bool:
        """Wait until one more item may be sent; False: no more are wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._credit > 0 or self._is_closed)
            self._credit -= 1
            return not self._is_closed

    def add(self, items: int) -> None:
        """The consumer has taken items."""
        with self._changed:
            self._credit += items
            self._changed.notify()

    def close(self) -> None:
        """The consumer wants no more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()


class AsyncWindow:
    """Credit for a generator that runs on an event loop; made on that loop."""

    def __init__(self, credit: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._credit = credit
        self._is_closed = False
        self._changed = asyncio.Event()

    async def take(self) -> bool:
        """Wait until one more item may be sent; False: no more are wanted."""
        while self._credit <= 0 and not self._is_closed:
            self._changed.clear()
            await self._changed.wait()
        self._credit -= 1
        return not self._is_closed

    def add(self, items: int) -> None:
        """The consumer has taken items. From any thread."""
        self._loop.call_soon_threadsafe(self._add, items)

    def close(self) -> None:
        """The consumer wants no more. From any thread."""
        self._loop.call_soon_threadsafe(self._close)

    def _add(self, items: int) -> None:
        self._credit += items
        self._changed.set()

    def _close(self) -> None:
        self._is_closed = True
        self._changed.set()
