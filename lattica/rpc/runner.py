"""Handlers of calls that arrive together share a task, until one of them waits.

Most handlers end without waiting for anything. A task for each cost a third of a small
call: its making, its turn in the loop and its end. So one task starts handler after
handler, each in a context of its own; the first that waits keeps the task for itself, and
the handlers behind it get another. To a handler this looks like a task made for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from time import perf_counter
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")
J = TypeVar("J", contravariant=True)

TURN = 24  # handlers started before the loop has its turn


class Jobs(Protocol[J]):
    """What a runner runs. Nothing here raises."""

    def begin(self, job: J, task: asyncio.Task[None]) -> Coroutine[Any, Any, Any] | None:
        """The coroutine of a job, to be run in a copy of the current context; None: drop it."""
        ...

    def returned(self, job: J, value: Any) -> Awaitable[None] | None:
        """The job is over and has waited for nothing; what is left to be waited for."""
        ...

    def raised(self, job: J, error: BaseException) -> None:
        """The job has failed before it waited for anything."""
        ...

    def waits(self, job: J, rest: Rest) -> Awaitable[None]:
        """The job waits: awaiting `rest` goes on with it, and has its outcome."""
        ...

    def blocked(self, job: J, seconds: float) -> None:
        """The job kept the loop for so long, from one wait to the next."""
        ...


class Runner(Generic[T]):
    """Starts jobs in the order they came. Its tasks belong to the group it was given."""

    def __init__(
        self, tasks: asyncio.TaskGroup, jobs: Jobs[T], *, block_limit: float = math.inf
    ) -> None:
        """Steps of jobs that take more than `block_limit` seconds are told to `jobs`."""
        self._tasks = tasks
        self._jobs = jobs
        self._block_limit = block_limit
        self._queue: deque[T] = deque()
        self._has_task = False  # one that will take the next job

    def add(self, job: T) -> None:
        """Start `job` in the loop's next turn."""
        self._queue.append(job)
        if not self._has_task:
            self._hand_on()

    async def _run(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        queue, jobs = self._queue, self._jobs
        started = 0
        began, limit = perf_counter(), self._block_limit
        while queue:
            job = queue.popleft()
            coroutine = jobs.begin(job, task)
            if coroutine is None:
                continue
            context = contextvars.copy_context()
            left: Awaitable[None] | None = None
            try:
                waits_for = context.run(coroutine.send, None)
            except StopIteration as end:
                left = jobs.returned(job, end.value)
            except BaseException as error:  # noqa: BLE001 - the job's outcome
                jobs.raised(job, error)
            else:
                rest = Rest(coroutine, context, waits_for, partial(jobs.blocked, job), limit)
                left = jobs.waits(job, rest)
            began, before = perf_counter(), began
            if began - before > limit:
                jobs.blocked(job, began - before)
            if left is not None:
                self._hand_on()
                await left
                return
            if task.cancelling():
                break  # meant for that job, but it would reach the next one
            started += 1
            if started % TURN == 0:
                await asyncio.sleep(0)
                began = perf_counter()
        self._hand_on()

    def _hand_on(self) -> None:
        """Another task takes the next jobs, if there are any."""
        self._has_task = bool(self._queue)
        if not self._has_task:
            return
        run = self._run()
        try:
            self._tasks.create_task(run)
        except RuntimeError:
            run.close()
            self._queue.clear()  # the group is ending, and takes nothing on


class Rest:
    """What is left of a job that has begun: awaited, it goes on in its context."""

    __slots__ = ("_blocked", "_context", "_job", "_limit", "_waits_for")

    def __init__(
        self,
        job: Coroutine[Any, Any, Any],
        context: contextvars.Context,
        waits_for: Any,
        blocked: Callable[[float], None],
        limit: float,
    ) -> None:
        self._job = job
        self._context = context
        self._waits_for = waits_for
        self._blocked = blocked
        self._limit = limit

    def __await__(self) -> Generator[Any, Any, Any]:
        step = self._context.run
        waits_for = self._waits_for
        advance: Callable[[Any], Any]
        while True:
            try:
                value = yield waits_for
            except BaseException as error:  # noqa: BLE001 - a cancellation: the job's to handle
                advance, given = self._job.throw, error
            else:
                advance, given = self._job.send, value
            began = perf_counter()
            try:
                waits_for = step(advance, given)
            except StopIteration as end:
                return end.value
            finally:
                if (seconds := perf_counter() - began) > self._limit:
                    self._blocked(seconds)
