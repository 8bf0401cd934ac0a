"""What the API in this process talks to: a driver's peer, or a worker's pipe to its host.

A process has at most one context, as an interpreter has one standard output; it is the one
piece of module state that the flat API needs.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeVar

from lattica.actors.core import Core
from lattica.actors.messages import ObjectId
from lattica.errors import ActorsError, NotInitializedError

T = TypeVar("T")

log = logging.getLogger("lattica.actors")

PIN_SECONDS = 10.0  # how long an outgoing ref is kept, until its receiver has borrowed it


class Context:
    """Bridges any thread and any event loop of this process to the core's loop."""

    def __init__(
        self,
        core: Core,
        loop: asyncio.AbstractEventLoop,
        *,
        kind: Literal["driver", "worker"],
        name: str = "",
    ) -> None:
        """`loop` is the one that the core runs on; `name` is this peer's, for errors."""
        self.core = core
        self.loop = loop
        self.kind = kind
        self.name = name
        # What is posted runs in the loop's own context, wherever it was posted from: there
        # anyio knows which library it is on (with sniffio installed it does not guess).
        self._home = contextvars.copy_context()
        self._posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._scheduled = False
        self._closed = False
        self._waits: set[concurrent.futures.Future[Any]] = set()
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether the core can still be reached."""
        return not self._closed and not self.loop.is_closed()

    @property
    def on_core_loop(self) -> bool:
        """Whether the caller runs on the core's own event loop."""
        return asyncio._get_running_loop() is self.loop

    def new_object_id(self) -> ObjectId:
        """A fresh id, owned by this context's peer."""
        return ObjectId(self.core.owner, os.urandom(16))

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Run `function(*args)` on the core's loop, in the order posted; never blocks.

        Safe from `__del__` and from any thread. After `close` it does nothing.
        """
        self._enqueue(function, args)

    def start(
        self, coroutine: Callable[..., Coroutine[Any, Any, T]], *args: Any
    ) -> concurrent.futures.Future[T]:
        """Start `coroutine(*args)` on the core's loop, in order with what is posted.

        Its first step is taken before anything that is posted or started later.

        Raises:
            NotInitializedError: the context is closed.
        """
        if not self.is_open:
            raise NotInitializedError("lattica was shut down; call lattica.init() again")
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        with self._lock:
            self._waits.add(future)
        future.add_done_callback(self._forget)
        self._enqueue(self._begin, (coroutine, args, future))
        return future

    def run(self, coroutine: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Call `coroutine(*args)` on the core's loop and block until its result.

        Raises:
            NotInitializedError: the context was closed, before or meanwhile.
        """
        if self.on_core_loop:
            raise ActorsError(
                "a blocking call on Lattica's own event loop would wait for itself; "
                "use `await` here: `await ref`, `await asyncio.gather(*refs)`"
            )
        future = self.start(coroutine, *args)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise NotInitializedError("lattica was shut down during the call") from None
        finally:
            future.cancel()  # Ctrl-C in the middle of the wait; otherwise it does nothing

    async def run_async(self, coroutine: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Await `coroutine(*args)`, which runs on the core's loop, from any asyncio loop."""
        return await asyncio.wrap_future(self.start(coroutine, *args))

    def pin(self, object_id: ObjectId) -> None:
        """Keep an object for a while: a ref to it has just left this process."""

        def keep() -> None:
            self.core.retain(object_id)
            self.loop.call_later(PIN_SECONDS, self._unpin, object_id)

        self.post(keep)

    def close(self) -> None:
        """Cut the API off from the core; calls that wait end with NotInitializedError."""
        self._closed = True
        with self._lock:
            waits = tuple(self._waits)
        for future in waits:
            future.cancel()

    def _unpin(self, object_id: ObjectId) -> None:
        if not self._closed:
            self.core.release(object_id)

    def _forget(self, future: concurrent.futures.Future[Any]) -> None:
        with self._lock:
            self._waits.discard(future)

    def _enqueue(self, function: Callable[..., object], args: tuple[Any, ...]) -> None:
        if self._closed:
            return
        self._posted.append((function, args))
        # One wake-up serves a whole burst. The flag is cleared before the queue is emptied,
        # so that something posted meanwhile is either taken along or schedules anew.
        if not self._scheduled:
            self._scheduled = True
            try:
                self.loop.call_soon_threadsafe(self._drain, context=self._home)
            except RuntimeError:  # the loop is closed: the interpreter is on its way out
                self._closed = True

    def _drain(self) -> None:
        self._scheduled = False
        while self._posted:
            function, args = self._posted.popleft()
            try:
                function(*args)
            except Exception:
                log.exception("%s failed", function)
            if function == self._begin:
                # The new task takes its first step before the rest of the queue.
                self._scheduled = True
                self.loop.call_soon(self._drain, context=self._home)
                return

    def _begin(
        self,
        coroutine: Callable[..., Coroutine[Any, Any, Any]],
        args: tuple[Any, ...],
        future: concurrent.futures.Future[Any],
    ) -> None:
        if future.cancelled() or self._closed:
            future.cancel()
            return
        task = self.loop.create_task(coroutine(*args))
        task.add_done_callback(lambda task: _settle(future, task))
        future.add_done_callback(lambda future: self._cancelled(future, task))

    def _cancelled(self, future: concurrent.futures.Future[Any], task: asyncio.Task[Any]) -> None:
        if future.cancelled() and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(task.cancel)


def _settle(future: concurrent.futures.Future[Any], task: asyncio.Task[Any]) -> None:
    if task.cancelled():
        future.cancel()
        return
    error = task.exception()
    if not future.set_running_or_notify_cancel():
        return
    if error is None:
        future.set_result(task.result())
    else:
        future.set_exception(error)


_current: Context | None = None


def set_current(context: Context | None) -> None:
    """Make `context` the one that the API of this process uses."""
    global _current
    _current = context


def find_current() -> Context | None:
    """The context of this process, if any."""
    return _current


def current() -> Context:
    """The context of this process.

    Raises:
        NotInitializedError: there is none.
    """
    if _current is None or _current._closed:
        raise NotInitializedError(
            "lattica is not running in this process; call lattica.init() first"
        )
    return _current
