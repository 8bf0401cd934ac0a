"""Threads for handlers that block."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lattica.rpc.admission import Limit
from lattica.rpc.work import Outcome, Work


class Threads:
    """Starts threads as they are needed, and keeps them.

    They are daemons, which those of `concurrent.futures` are not: a handler that never
    returns cannot be stopped, and must not keep the process from ending.
    """

    def __init__(self, size: int) -> None:
        self.limit = Limit(size)
        self._idle: list[_Thread] = []
        self._closed = False

    def run(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Work:
        """See `Pool`. The function goes on to its end, whoever waits."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Outcome] = loop.create_future()
        thread = self._idle.pop() if self._idle else _Thread()

        def finished(outcome: Outcome) -> None:
            if self._closed:
                thread.end()
            else:
                self._idle.append(thread)
            done.set_result(outcome)

        job = partial(contextvars.copy_context().run, function, *args, **kwargs)
        thread.give(job, lambda outcome: loop.call_soon_threadsafe(finished, outcome))
        return Work(done, _go_on)

    def close(self) -> None:
        """End those that are idle, and the others when they are."""
        self._closed = True
        while self._idle:
            self._idle.pop().end()


class _Thread:
    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Outcome], Any]] | None] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._work, name="lattica-handler", daemon=True).start()

    def give(self, job: Callable[[], Any], finished: Callable[[Outcome], Any]) -> None:
        self._jobs.put((job, finished))

    def end(self) -> None:
        self._jobs.put(None)

    def _work(self) -> None:
        while (given := self._jobs.get()) is not None:
            job, finished = given
            try:
                outcome = Outcome(job(), None)
            except BaseException as error:  # noqa: BLE001 - it is the outcome, on the loop
                outcome = Outcome(None, error)
            try:
                finished(outcome)
            except RuntimeError:
                return  # the loop is closed: nobody waits
            del given, job, finished, outcome  # nothing is held while it is idle


def _go_on() -> None:
    """A thread cannot be stopped."""
