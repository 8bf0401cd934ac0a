"""One task on its host, from its arguments to its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Protocol

import anyio

from lattica.actors import pipe_messages as pm
from lattica.actors.leases import Lease
from lattica.actors.messages import Failure, ObjectId, Outcome, TaskSpec, Value
from lattica.actors.worker_process import FutureSink, StreamSink, WorkerLostError, WorkerProcess
from lattica.config import ActorsConfig
from lattica.errors import ActorsError, FrameError


class RunsTasks(Protocol):
    """What a run needs of its host."""

    name: str

    @property
    def config(self) -> ActorsConfig:
        """Limits."""
        ...

    async def arguments(self, refs: tuple[ObjectId, ...]) -> tuple[Value, ...] | Failure:
        """See `Host`."""
        ...

    async def worker_of(self, lease: Lease) -> WorkerProcess:
        """See `Host`."""
        ...

    def failure(self, kind: str, message: str, *, may_have_run: bool) -> Failure:
        """See `Host`."""
        ...


class TaskRun:
    """Exactly one of `outcomes` and `items` is awaited, once."""

    def __init__(self, host: RunsTasks, lease: Lease, spec: TaskSpec) -> None:
        self._host = host
        self.lease = lease
        self._spec = spec
        self._ended: Failure | None = None  # cancelled or aborted, before it ran or by force
        self._stopped = asyncio.Event()
        self._worker: WorkerProcess | None = None
        self._call = 0

    def cancel(self, *, force: bool) -> None:
        """Interrupt it; `force` ends its worker."""
        name = self._spec.name
        if self._worker is None:
            self._end(f"{name}() was cancelled before it began", may_have_run=False)
        elif force:
            self._end(f"{name}() was cancelled and its worker killed", may_have_run=True)
            self._worker.kill()
        else:
            self._worker.stop(self._call)

    def abort(self, reason: str) -> None:
        """End it, and its worker: its lease is over."""
        self._end(f"{self._spec.name}() was ended: {reason}", may_have_run=self._call > 0)
        if self._worker is not None:
            self._worker.kill()

    async def outcomes(self) -> list[Outcome]:
        """One per return."""
        count = len(self._spec.returns)
        async with self.lease.lock:
            begun = await self._prepare()
            if isinstance(begun, Failure):
                return [begun] * count
            worker, values = begun
            sink = FutureSink(count)
            failure = self._begin(worker, values, sink, 0)
            if failure is not None:
                return [failure] * count
            try:
                return await asyncio.shield(sink.future)
            except WorkerLostError as error:
                return [self._lost(worker, error)] * count
            finally:
                if not sink.future.done():
                    await self._abandon(worker, sink.future)

    async def items(self) -> AsyncGenerator[Outcome, None]:
        """A stream's items; an error is the last."""
        async with self.lease.lock:
            begun = await self._prepare()
            if isinstance(begun, Failure):
                yield begun
                return
            worker, values = begun
            window = self._host.config.stream_window
            sink = StreamSink(window, lambda items: worker.credit(self._call, items))
            failure = self._begin(worker, values, sink, window)
            if failure is not None:
                yield failure
                return
            try:
                while (item := await sink.next()) is not None:
                    yield item
                if sink.cause is not None:
                    yield self._lost(worker, WorkerLostError(sink.cause))
            finally:
                if not sink.is_ended:
                    await self._abandon(worker, asyncio.ensure_future(sink.ended()))

    async def _prepare(self) -> tuple[WorkerProcess, tuple[Value, ...]] | Failure:
        """A worker and the arguments, unless it is cancelled meanwhile."""
        found: tuple[WorkerProcess, tuple[Value, ...]] | Failure | None = None

        async def prepare() -> None:
            nonlocal found
            values = await self._host.arguments(self._spec.arg_refs)
            if isinstance(values, Failure):
                found = values
            else:
                try:
                    found = await self._host.worker_of(self.lease), values
                except ActorsError as error:
                    text = f"{self._spec.name}() has no worker on {self._host.name}: {error}"
                    found = self._host.failure("worker_died", text, may_have_run=False)
            tasks.cancel_scope.cancel()

        if self._ended is None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(prepare)
                await self._stopped.wait()
                tasks.cancel_scope.cancel()
        if self._ended is not None:
            return self._ended
        assert found is not None
        return found

    def _begin(
        self,
        worker: WorkerProcess,
        values: tuple[Value, ...],
        sink: FutureSink | StreamSink,
        window: int,
    ) -> Failure | None:
        spec = self._spec
        self._worker, self._call = worker, worker.next_call()
        message = pm.Run(
            self._call,
            spec.name,
            spec.function_hash,
            worker.known_function(spec.function_hash, spec.function),
            spec.args,
            values,
            len(spec.returns),
            window,
        )
        try:
            worker.begin(message, sink)
        except FrameError as error:
            # The worker has not seen the function; it must not be taken to know it.
            worker.kill()
            text = f"the arguments of {spec.name}(): {error}"
            return self._host.failure("serialization", text, may_have_run=False)
        except WorkerLostError as error:
            text = f"{spec.name}() did not run: its worker on {self._host.name} {error}"
            return self._host.failure("worker_died", text, may_have_run=False)
        return None

    def _end(self, message: str, *, may_have_run: bool) -> None:
        self._ended = self._host.failure("cancelled", message, may_have_run=may_have_run)
        self._stopped.set()

    def _lost(self, worker: WorkerProcess, error: WorkerLostError) -> Failure:
        if self._ended is not None:
            return self._ended
        return self._host.failure(
            "worker_died",
            f"{self._spec.name}() did not finish: its worker {worker.pid} on {self._host.name} "
            f"{error}; it may have run",
            may_have_run=True,
        )

    async def _abandon(self, worker: WorkerProcess, end: asyncio.Future[Any]) -> None:
        """Nobody wants the outcome any more: interrupt the code, or end its worker."""
        worker.stop(self._call)
        with anyio.CancelScope(shield=True):
            try:
                with anyio.move_on_after(self._host.config.stop_grace):
                    await end
            except WorkerLostError:
                return
            finally:
                if not end.done() or end.cancelled():
                    worker.kill()
