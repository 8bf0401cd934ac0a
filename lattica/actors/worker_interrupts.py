"""Interrupting user code from another thread, and never anything but user code."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import threading
from collections.abc import Iterator


class TaskInterrupt(KeyboardInterrupt):
    """Raised inside user code whose call was cancelled; `except Exception` does not catch it."""


class Interrupts:
    """Which calls are asked to stop, and where each runs."""

    def __init__(self) -> None:
        self._requested: set[int] = set()
        self._main: int | None = None  # the call on the main thread, while it may be interrupted
        self._threads: dict[int, int] = {}  # call -> thread id
        self._tasks: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Task[object]]] = {}
        self._lock = threading.Lock()

    def request(self, call: int) -> None:
        """Stop `call`, now or as soon as it begins. Not for the main thread."""
        self._requested.add(call)
        with self._lock:
            if (found := self._tasks.get(call)) is not None:
                loop, task = found
                loop.call_soon_threadsafe(task.cancel)
            elif (thread := self._threads.get(call)) is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread), ctypes.py_object(TaskInterrupt)
                )
            elif self._main == call:
                # A signal also ends a system call that waits, which an exception alone does not.
                signal.pthread_kill(_main_thread(), signal.SIGUSR1)

    def forget(self, call: int) -> None:
        """The call has ended."""
        self._requested.discard(call)
        self._threads.pop(call, None)

    def check(self) -> None:
        """On the main thread: raise if the call that runs there is to stop."""
        call = self._main
        if call is not None and call in self._requested and call not in self._tasks:
            self._requested.discard(call)  # once; what user code does then is its own affair
            raise TaskInterrupt

    @contextlib.contextmanager
    def region(self, call: int) -> Iterator[None]:
        """The part of a call that may be interrupted, on any thread.

        The exception may be raised up to the very end of it, so it is caught around it.
        """
        if threading.current_thread() is not threading.main_thread():
            with self._thread_region(call):
                yield
            return
        try:
            self._main = call
            self.check()
            yield
        finally:
            self._main = None

    @contextlib.contextmanager
    def _thread_region(self, call: int) -> Iterator[None]:
        if call in self._requested:
            raise TaskInterrupt
        self._threads[call] = threading.get_ident()
        try:
            yield
        finally:
            # Under the lock: afterwards no exception can be on its way to this thread.
            with self._lock:
                self._threads.pop(call, None)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(threading.get_ident()), None
                )

    @contextlib.contextmanager
    def task_region(self, call: int) -> Iterator[None]:
        """The part of a call that runs as the current asyncio task."""
        task = asyncio.current_task()
        assert task is not None
        if call in self._requested:
            raise TaskInterrupt
        self._tasks[call] = (asyncio.get_running_loop(), task)
        try:
            yield
        finally:
            with self._lock:
                del self._tasks[call]

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """A part of a region that must not be interrupted: a message is being written."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        call, self._main = self._main, None
        try:
            yield
        finally:
            self._main = call
        self.check()


def _main_thread() -> int:
    ident = threading.main_thread().ident
    assert ident is not None
    return ident
