"""An actor on its host: a mailbox, a process, and another process when that one dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import anyio

from lattica.actors import pipe_messages as pm
from lattica.actors.host_calls import HostedCall
from lattica.actors.mailbox import Mailbox
from lattica.actors.messages import ActorSpec, ActorState, Failure, FailureKind, Value
from lattica.actors.worker_calls import ASYNC_CONCURRENCY
from lattica.actors.worker_process import WorkerLostError, WorkerProcess
from lattica.clock import Clock
from lattica.errors import ActorsError, FrameError
from lattica.identity.keys import PeerId

AHEAD = 16  # calls sent to a worker that runs one at a time, so that it need not wait for more
_CALM = 5.0  # seconds of life after which a crash is not part of a series
_MAX_BACKOFF = 5.0  # seconds


class HostedActor:
    """One actor. `run` lives as long as it does."""

    def __init__(
        self,
        spec: ActorSpec,
        values: tuple[Value, ...],
        *,
        peer: PeerId,
        peer_name: str,
        start: Callable[[], Awaitable[WorkerProcess]],
        clock: Clock,
    ) -> None:
        """`values` are those of `spec.arg_refs`; `start` makes a worker."""
        self.spec = spec
        self._values = values
        self._peer = peer
        self._peer_name = peer_name
        self._start = start
        self._clock = clock
        self._worker: WorkerProcess | None = None
        self._mailbox: Mailbox[HostedCall] = Mailbox()
        self._sent: set[HostedCall] = set()
        self._untouched: list[HostedCall] = []  # sent, but not begun when the worker died
        self._limit = 0  # calls in the worker
        self._is_concurrent = False
        self._end_reason = ""  # set: no restart
        self._changed = asyncio.Event()
        self.state = ActorState("starting")
        self.created: asyncio.Future[Failure | None] = asyncio.get_running_loop().create_future()

    @property
    def is_dead(self) -> bool:
        """Whether it is gone for good."""
        return self.state.state == "dead"

    @property
    def pid(self) -> int:
        """Of its process; 0 while it has none."""
        return self.state.pid

    # --------------------------------------------------------------------- life

    async def run(self) -> None:
        """Construct the actor, and again after each crash that its restarts cover."""
        quick = 0
        try:
            while not self._end_reason:
                began = self._clock.monotonic()
                failure = await self._incarnate()
                if failure is not None:
                    self._die(failure.message, failure)
                    return
                if self._worker is not None:
                    await self._worker.dead.wait()
                if not self._will_restart():
                    break
                quick = quick + 1 if self._clock.monotonic() - began < _CALM else 0
                self._set("restarting", restarts=self.state.restarts + 1, reason=self._cause())
                self._mailbox.put_back(self._untouched)
                self._untouched = []
                if quick > 1:
                    await anyio.sleep(min(_MAX_BACKOFF, 0.05 * 2**quick))
            self._die(self._end_reason or self._cause())
        finally:
            self._die("its host ended")
            if self._worker is not None:
                self._worker.kill()

    async def _incarnate(self) -> Failure | None:
        """One process. None once constructed, or if it died of something a restart may cure."""
        spec = self.spec
        self._worker = None
        try:
            self._worker = worker = await self._start()
            if self._end_reason:
                worker.kill()
                return None
            self._set(self.state.state, pid=worker.pid)
            created = await worker.create(
                pm.Create(
                    worker.next_call(),
                    spec.class_name,
                    spec.definition,
                    spec.args,
                    self._values,
                    spec.max_concurrency,
                )
            )
        except WorkerLostError as error:
            if self._will_restart() and self._worker is not None:
                return None
            return self._failure("actor_died", f"{self._who()} died: its process {error}")
        except (ActorsError, FrameError) as error:
            return self._failure("actor_died", f"{self._who()} could not start: {error}")
        if created.failure is not None:
            worker.kill()
            if self.state.restarts:
                reason = f"its constructor raised when it was restarted: {created.failure.message}"
                return self._failure("actor_died", f"{self._who()} died: {reason}")
            return created.failure
        self._is_concurrent = created.concurrent
        if not created.concurrent:
            self._limit = AHEAD
        else:
            self._limit = spec.max_concurrency if spec.max_concurrency > 1 else ASYNC_CONCURRENCY
        self._set("alive", pid=worker.pid)
        if not self.created.done():
            self.created.set_result(None)
        self._pump()
        return None

    def kill(self, reason: str, *, no_restart: bool) -> None:
        """End the process, and the actor too if `no_restart`."""
        if no_restart:
            self.retire(reason)
        if self._worker is not None:
            self._worker.kill()

    def retire(self, reason: str) -> None:
        """Have no further process after this one."""
        self._end_reason = self._end_reason or reason

    async def watch(self) -> AsyncGenerator[ActorState, None]:
        """The state now and after each change, until it is dead."""
        seen = None
        while True:
            state, changed = self.state, self._changed
            if state != seen:
                seen = state
                yield state
            elif state.state == "dead":
                return
            else:
                await changed.wait()

    def _will_restart(self) -> bool:
        if self._end_reason or (self._worker is not None and self._worker.leaving):
            return False
        allowed = self.spec.max_restarts
        return allowed < 0 or self.state.restarts < allowed

    def _cause(self) -> str:
        if self._worker is None:
            return "its process could not start"
        if self._worker.leaving:
            return self._worker.leaving
        return f"its process {self._worker.pid} {self._worker.cause}"

    def _set(self, state: str, *, pid: int = 0, restarts: int = -1, reason: str = "") -> None:
        restarts = self.state.restarts if restarts < 0 else restarts
        self.state = ActorState(state, pid, restarts, reason)  # type: ignore[arg-type]
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _die(self, reason: str, failure: Failure | None = None) -> None:
        if self.is_dead:
            return
        self._set("dead", reason=reason)
        if not self.created.done():
            self.created.set_result(failure or self.died())
        calls = [*self._sent, *self._untouched, *self._mailbox.clear()]
        for call in calls:
            call.fail(self.died(may_have_run=call in self._sent))
        self._sent.clear()
        self._untouched.clear()

    # -------------------------------------------------------------------- calls

    def enqueue(self, call: HostedCall, *, complete: bool) -> None:
        """A call has arrived; `complete`: it waits for no arguments."""
        if self.is_dead:
            call.fail(self.died())
            return
        call.on_finish, call.on_lost = self._on_finish, self._on_lost
        self._mailbox.add(call.caller, call, complete=complete)
        self._pump()

    def complete(self, call: HostedCall) -> None:
        """The call's arguments are there."""
        self._mailbox.complete(call.caller, call)
        self._pump()

    def withdraw(self, call: HostedCall) -> bool:
        """Take back a call that was not sent; False: it was."""
        removed = self._mailbox.remove(call.caller, call)
        self._pump()  # others may have waited behind it
        return removed

    def stop(self, call: HostedCall) -> None:
        """Interrupt a call that was sent."""
        if call.worker is not None:
            call.worker.stop(call.number)

    def _pump(self) -> None:
        while self.state.state == "alive" and len(self._sent) < self._limit:
            assert self._worker is not None
            if not self._worker.is_alive:
                return
            call = self._mailbox.take()
            if call is None:
                return
            try:
                self._worker.begin(call.to_worker(self._worker), call)
            except FrameError as error:
                call.fail(self._failure("serialization", f"{call.message.method}(): {error}"))
            else:
                self._sent.add(call)

    def _on_finish(self, call: HostedCall) -> None:
        self._sent.discard(call)
        self._pump()

    def _on_lost(self, call: HostedCall, is_first: bool) -> None:
        """The worker ended with this call unfinished. Only the first can have begun, unless
        calls overlap: a worker sends one's outcome before it begins the next."""
        self._sent.discard(call)
        begun = is_first or self._is_concurrent
        if not self._will_restart():
            call.fail(self.died(may_have_run=begun))
        elif begun:
            call.fail(
                self._failure(
                    "actor_unavailable",
                    f"{self._who()} is restarting: {self._cause()} during {call.message.method}()"
                    "; the call may have run",
                    may_have_run=True,
                )
            )
        else:
            self._untouched.append(call)

    def died(self, *, may_have_run: bool = False) -> Failure:
        """What is said to calls of an actor that is gone."""
        reason = self.state.reason or self._end_reason or self._cause()
        run = "the call may have run" if may_have_run else "the call did not run"
        if self.state.restarts:
            reason += f" (after {self.state.restarts} restarts)"
        return self._failure(
            "actor_died", f"{self._who()} is dead: {reason}; {run}", may_have_run=may_have_run
        )

    def _who(self) -> str:
        name = f" '{self.spec.name}'" if self.spec.name else ""
        return f"actor {self.spec.class_name}{name} on {self._peer_name}"

    def _failure(self, kind: FailureKind, message: str, *, may_have_run: bool = False) -> Failure:
        return Failure(kind, message, self._peer, self._peer_name, may_have_run=may_have_run)
