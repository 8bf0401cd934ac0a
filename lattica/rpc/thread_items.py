"""Items of a plain generator that runs in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from lattica.rpc.threads import Threads
from lattica.rpc.work import Outcome

AHEAD = 16  # items that the generator may be ahead of its consumer


class ThreadItems:
    """An async iterator. Closing it ends the generator at its next item."""

    def __init__(self, threads: Threads, make: Callable[[], Iterator[Any]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._make = make
        self._items: deque[Any] = deque()
        self._room = threading.Semaphore(AHEAD)
        self._stopped = False
        self._waiter: asyncio.Future[None] | None = None
        self.done: asyncio.Future[Outcome] = threads.run(self._produce, (), {}).done
        self.done.add_done_callback(lambda _: self._wake())

    def _produce(self) -> None:
        """In the thread: hand over each item once there is room for it."""
        items = self._make()
        try:
            for item in items:
                self._room.acquire()
                if self._stopped:
                    return
                self._loop.call_soon_threadsafe(self._arrived, item)
        finally:
            if hasattr(items, "close"):
                items.close()

    def _arrived(self, item: Any) -> None:
        self._items.append(item)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> ThreadItems:
        return self

    async def __anext__(self) -> Any:
        while not self._items:
            if self.done.done():
                error = self.done.result().error
                raise StopAsyncIteration if error is None else error
            self._waiter = self._loop.create_future()
            await self._waiter  # bounded by the call's deadline, which cancels its task
        self._room.release()
        return self._items.popleft()

    async def aclose(self) -> None:
        """Want no more items."""
        self._stopped = True
        self._items.clear()
        self._room.release()
