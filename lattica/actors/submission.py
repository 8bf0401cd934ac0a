"""Tasks: wait for their arguments, find them a lease, run them, and settle what they return."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Protocol, cast

import anyio.abc

from lattica.actors.leasing import Lease, Leasing
from lattica.actors.messages import Failure, ObjectId, Outcome, Requirements, TaskSpec
from lattica.errors import (
    BadArgumentsError,
    BusyError,
    CallLostError,
    LatticaError,
    LeaseRefusedError,
    LinkError,
    NoPlacementError,
    PermissionDeniedError,
    StreamTruncatedError,
    UnknownMethodError,
)

IDLE = 0.1  # seconds a lease is kept for the next task of the same shape
MAX_ASKING = 16  # lease requests of one shape at a time
RUN_TIMEOUT = float("inf")  # a task takes as long as it takes; a lost link ends the call
FREE_RETRIES = 8  # of tasks that surely did not run

# Errors with which a peer turns a call away before anything of it runs.
DID_NOT_RUN = (
    BadArgumentsError,
    BusyError,
    LeaseRefusedError,
    PermissionDeniedError,
    UnknownMethodError,
)

log = logging.getLogger("lattica.actors")
Shape = tuple[Any, ...]


class Results(Protocol):
    """Where outcomes go."""

    def settle(self, object_id: ObjectId, outcome: Outcome) -> None:
        """One result."""
        ...

    def item(self, stream: ObjectId, outcome: Outcome) -> None:
        """One item of a stream."""
        ...

    async def room(self, stream: ObjectId) -> None:
        """Wait while a stream's consumer is too far behind."""
        ...

    def end(self, stream: ObjectId) -> None:
        """A stream's end."""
        ...

    async def dependencies(self, ids: tuple[ObjectId, ...]) -> Failure | None:
        """Wait until all are there; the first failure among them."""
        ...

    def hold(self, ids: tuple[ObjectId, ...]) -> Callable[[], None]:
        """Keep objects until the result is called."""
        ...

    def name_of(self, lease: Lease) -> str:
        """The name of a lease's peer."""
        ...


class Task:
    """One submitted task."""

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self.retries = spec.max_retries
        self.free_retries = FREE_RETRIES
        self.lease: Lease | None = None
        self.cancelled = False
        self.done = False
        self.items = 0  # of the stream, so far


class Submission:
    """Runs the tasks of one owner."""

    def __init__(self, leasing: Leasing, results: Results, tasks: anyio.abc.TaskGroup) -> None:
        self._leasing = leasing
        self._results = results
        self._tasks = tasks
        self._by_return: dict[ObjectId, Task] = {}
        self._pools: dict[Shape, _Pool] = {}

    def submit(self, spec: TaskSpec) -> None:
        """Start a task; never blocks."""
        task = Task(spec)
        for object_id in _results_of(spec):
            self._by_return[object_id] = task
        let_go = self._results.hold((*spec.arg_refs, *spec.args.refs))
        self._tasks.start_soon(self._prepare, task, let_go)

    async def cancel(self, object_id: ObjectId, *, force: bool) -> bool:
        """Cancel the task that makes an object; False: there is none (any more)."""
        task = self._by_return.get(object_id)
        if task is None:
            return False
        task.cancelled = True
        if task.lease is None:
            self._finish(task, cancelled(task.spec.name))
            return True
        try:
            await self._leasing.host(task.lease.peer).cancel(task.spec.task, force)
        except LatticaError as error:
            log.debug("cancelling %s: %s", task.spec.name, error)
        return True

    async def _prepare(self, task: Task, let_go: Callable[[], None]) -> None:
        spec = task.spec
        finished = asyncio.Event()
        task_done = finished.set
        try:
            failure = await self._results.dependencies(spec.arg_refs)
            if failure is not None:
                self._finish(task, failure)
                return
            if not task.done:
                self._enqueue(task, task_done)
                await finished.wait()  # as long as the task takes
        finally:
            let_go()

    def _enqueue(self, task: Task, when_done: Callable[[], None]) -> None:
        key = _shape(task.spec.requirements)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = _Pool(self, task.spec.requirements)
        pool.add(task, when_done)

    def _finish(self, task: Task, outcomes: list[Outcome] | Failure) -> None:
        if task.done:
            return
        task.done = True
        spec = task.spec
        for object_id in _results_of(spec):
            self._by_return.pop(object_id, None)
        if spec.stream is not None:
            if isinstance(outcomes, Failure):
                self._results.item(spec.stream, outcomes)
            self._results.end(spec.stream)
            return
        each = [outcomes] * len(spec.returns) if isinstance(outcomes, Failure) else outcomes
        for object_id, outcome in zip(spec.returns, each, strict=True):
            self._results.settle(object_id, outcome)

    async def run(self, task: Task, lease: Lease) -> bool:
        """Run a task on a lease and settle it; False: it is to be tried again."""
        task.lease = lease
        try:
            with self._leasing.doubts.waiting(lease.peer):
                outcomes = await self._call(task, lease)
        except (CallLostError, LinkError, StreamTruncatedError) as error:
            self._leasing.lost(lease, peer_too=True)
            may_have_run = getattr(error, "may_have_run", isinstance(error, StreamTruncatedError))
            name = self._results.name_of(lease)
            outcomes = Failure(
                "worker_died",
                f"peer {name} was lost while it had {task.spec.name}: {error}",
                peer=lease.peer,
                peer_name=name,
                may_have_run=may_have_run,
            )
        except LatticaError as error:
            self._leasing.lost(lease)
            name = self._results.name_of(lease)
            outcomes = Failure(
                "worker_died",
                f"peer {name} has no outcome of {task.spec.name}: {error}",
                peer=lease.peer,
                peer_name=name,
                may_have_run=not isinstance(error, DID_NOT_RUN),
            )
        except Exception as error:
            log.exception("running %s", task.spec.name)
            outcomes = Failure("worker_died", f"{task.spec.name}: {type(error).__name__}: {error}")
        finally:
            task.lease = None
        failure = _failure(outcomes)
        if task.cancelled and (failure is None or failure.kind != "cancelled"):
            if failure is not None:
                outcomes = cancelled(task.spec.name)
        elif failure is not None and self._try_again(task, failure):
            return False
        self._finish(task, outcomes)
        return True

    async def _call(self, task: Task, lease: Lease) -> list[Outcome] | Failure:
        spec = task.spec
        host = self._leasing.host(lease.peer, RUN_TIMEOUT)
        if spec.stream is None:
            outcomes = await host.run(lease.lease, spec)
            if len(outcomes) != len(spec.returns):
                failures = [each for each in outcomes if isinstance(each, Failure)]
                return (
                    failures[0]
                    if failures
                    else Failure(
                        "worker_died",
                        f"peer {self._results.name_of(lease)} answered {spec.name} with "
                        f"{len(outcomes)} results instead of {len(spec.returns)}",
                        peer=lease.peer,
                    )
                )
            return outcomes
        skip = task.items  # a retried generator starts anew; the items seen stand
        async with aclosing(items_of(host.run_stream(lease.lease, spec))) as items:
            async for outcome in items:
                if skip:
                    skip -= 1
                    continue
                if isinstance(outcome, Failure):
                    return outcome
                task.items += 1
                self._results.item(spec.stream, outcome)
                await self._results.room(spec.stream)
        return []

    def _try_again(self, task: Task, failure: Failure) -> bool:
        if failure.kind != "worker_died":
            return False
        if not failure.may_have_run and task.free_retries > 0:
            task.free_retries -= 1  # at most once still holds
            return True
        if task.retries == 0:
            return False
        task.retries -= 1  # from -1 it never comes to 0
        log.warning("trying %s again: %s", task.spec.name, failure.message)
        return True


class _Pool:
    """Tasks of one shape and the leases that run them, one task after another."""

    def __init__(self, submission: Submission, requirements: Requirements) -> None:
        self._submission = submission
        self._requirements = requirements
        self._queue: deque[tuple[Task, Callable[[], None]]] = deque()
        self._asking = 0
        self._idle = 0
        self._added = asyncio.Event()

    def add(self, task: Task, when_done: Callable[[], None]) -> None:
        self._queue.append((task, when_done))
        added, self._added = self._added, asyncio.Event()
        added.set()
        self._ask()

    def _ask(self) -> None:
        wanted = min(len(self._queue) - self._idle, MAX_ASKING)
        while self._asking < wanted:
            self._asking += 1
            self._submission._tasks.start_soon(self._work)

    async def _work(self) -> None:
        leasing = self._submission._leasing
        try:
            lease = await leasing.acquire(
                self._requirements, "task", self._name(), wanted=self._has_work
            )
        except NoPlacementError as error:
            self._fail(Failure("no_placement", str(error), may_have_run=False))
            return
        finally:
            self._asking -= 1
        if lease is None:
            return
        try:
            while lease.valid and (taken := await self._next()) is not None:
                task, when_done = taken
                if task.done or await self._submission.run(task, lease):
                    when_done()
                else:
                    self._queue.appendleft(taken)
                    await asyncio.sleep(0.05)
        finally:
            leasing.release(lease)
            self._ask()

    async def _next(self) -> tuple[Task, Callable[[], None]] | None:
        if not self._queue:
            self._idle += 1
            try:
                async with asyncio.timeout(IDLE):
                    while not self._queue:
                        await self._added.wait()
            except TimeoutError:
                return None
            finally:
                self._idle -= 1
        return self._queue.popleft()

    def _has_work(self) -> bool:
        while self._queue and self._queue[0][0].done:  # cancelled meanwhile
            self._queue.popleft()[1]()
        return bool(self._queue)

    def _name(self) -> str:
        return self._queue[0][0].spec.name if self._queue else "a task"

    def _fail(self, failure: Failure) -> None:
        queue, self._queue = self._queue, deque()
        for task, when_done in queue:
            self._submission._finish(task, failure)
            when_done()


def cancelled(name: str) -> Failure:
    """What a cancelled call returns."""
    return Failure("cancelled", f"{name} was cancelled")


def _results_of(spec: TaskSpec) -> tuple[ObjectId, ...]:
    return spec.returns if spec.stream is None else (spec.stream,)


def _failure(outcomes: list[Outcome] | Failure) -> Failure | None:
    if isinstance(outcomes, Failure):
        return outcomes
    return next((each for each in outcomes if isinstance(each, Failure)), None)


def _shape(needs: Requirements) -> Shape:
    return (
        needs.cpus,
        needs.gpus,
        needs.memory,
        tuple(sorted(needs.resources.items())),
        tuple(sorted(needs.labels.items())),
        needs.peer,
    )


def items_of(stream: AsyncIterator[Outcome]) -> AsyncGenerator[Outcome, None]:
    """A stub's stream as what it is: one that can be closed, which cancels the handler."""
    return cast("AsyncGenerator[Outcome, None]", stream)
