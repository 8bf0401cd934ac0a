"""The actors of a host: found by id, called in order, remembered for a while when dead."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Protocol

import anyio.abc

from lattica.actors.host_actor import HostedActor
from lattica.actors.host_calls import HostedCall
from lattica.actors.host_workers import Workers
from lattica.actors.leases import Lease
from lattica.actors.messages import (
    ActorCall,
    ActorId,
    ActorSpec,
    ActorState,
    Failure,
    ObjectId,
    Outcome,
    TaskId,
    Value,
)
from lattica.actors.pool import WorkerKey
from lattica.actors.worker_process import WorkerProcess
from lattica.clock import Clock
from lattica.config import ActorsConfig
from lattica.errors import LeaseRefusedError
from lattica.identity.keys import PeerId

log = logging.getLogger("lattica.actors")

_REMEMBERED = 1024  # dead actors whose cause of death is still known


class HoldsLeases(Protocol):
    """What actors need of their host; see `Host`."""

    name: str

    @property
    def config(self) -> ActorsConfig:
        """Limits."""
        ...

    def end_lease(self, lease: Lease, reason: str) -> None:
        """Take the resources back."""
        ...

    def lend(self, lease: Lease, is_idle: bool) -> None:
        """The lease's worker only waits, or no more."""
        ...

    def key_of(self, lease: Lease) -> WorkerKey:
        """The kind of worker that a lease needs."""
        ...

    async def arguments(self, refs: tuple[ObjectId, ...]) -> tuple[Value, ...] | Failure:
        """The values of a call's `arg_refs`."""
        ...

    def failure(self, kind: str, message: str, *, may_have_run: bool) -> Failure:
        """A failure that happened here."""
        ...


class HostedActors:
    """All actors of one host."""

    def __init__(
        self,
        host: HoldsLeases,
        peer: PeerId,
        workers: Workers,
        tasks: anyio.abc.TaskGroup,
        clock: Clock,
        counters: Counter[str],
    ) -> None:
        self._host = host
        self._peer = peer
        self._workers = workers
        self._tasks = tasks
        self._clock = clock
        self._counters = counters
        self._actors: OrderedDict[ActorId, HostedActor] = OrderedDict()
        self._calls: dict[TaskId, tuple[HostedActor, HostedCall]] = {}

    async def create(self, lease: Lease, spec: ActorSpec) -> Failure | None:
        """Start an actor; None once it is constructed.

        Raises:
            LeaseRefusedError: the lease ended before the actor began.
        """
        if spec.actor in self._actors or lease.actor is not None:
            return self._host.failure(
                "refused", "the actor or its lease is in use", may_have_run=False
            )
        lease.actor = spec.actor
        try:
            values = await self._host.arguments(spec.arg_refs)
        except BaseException:
            self._host.end_lease(lease, "its creation was cancelled")
            raise
        if isinstance(values, Failure):
            self._host.end_lease(lease, values.message)
            return values
        if lease.is_ended:
            raise LeaseRefusedError(f"the lease for {spec.class_name} ended before it began")
        key = self._host.key_of(lease)

        async def start() -> WorkerProcess:
            worker = await self._workers.start(key, spec.class_name)
            worker.set_idle_listener(lambda is_idle: self._host.lend(lease, is_idle))
            return worker

        actor = HostedActor(
            spec,
            values,
            peer=self._peer,
            peer_name=self._host.name,
            start=start,
            clock=self._clock,
        )
        self._actors[spec.actor] = actor
        self._counters["actors"] += 1
        self._tasks.start_soon(self._run_actor, actor, lease)
        try:
            return await asyncio.shield(actor.created)
        except BaseException:
            actor.kill("its creation was cancelled", no_restart=True)
            raise

    async def _run_actor(self, actor: HostedActor, lease: Lease) -> None:
        try:
            await actor.run()
        except Exception:  # a fault in one actor's supervision must not end the others
            log.exception("supervising %s", actor.spec.class_name)
        finally:
            self._counters["actors:restarted"] += actor.state.restarts
            self._host.end_lease(lease, actor.state.reason)
            self._forget_old_actors()

    def _forget_old_actors(self) -> None:
        dead = [key for key, actor in self._actors.items() if actor.is_dead]
        for key in dead[: max(0, len(dead) - _REMEMBERED)]:
            del self._actors[key]

    async def call(self, peer: PeerId, message: ActorCall) -> list[Outcome]:
        """Call a method; one outcome per return."""
        async with self._actor_call(peer, message) as call:
            return await call.outcomes

    async def call_stream(self, peer: PeerId, message: ActorCall) -> AsyncGenerator[Outcome, None]:
        """Call a generator method; an error is its last item."""
        async with self._actor_call(peer, message) as call:
            assert call.stream is not None
            while (item := await call.stream.next()) is not None:
                yield item

    @asynccontextmanager
    async def _actor_call(self, peer: PeerId, message: ActorCall) -> AsyncIterator[HostedCall]:
        call = HostedCall(peer, message, self._host.config.stream_window)
        self._counters["calls"] += 1
        actor = self._actors.get(message.actor)
        if actor is None:
            reason = f"there is no such actor on {self._host.name}; the call did not run"
            call.fail(self._host.failure("actor_died", reason, may_have_run=False))
            yield call
            return
        self._calls[message.task] = (actor, call)
        try:
            # Enqueued before anything is awaited: handlers start in the order of the calls.
            actor.enqueue(call, complete=not message.arg_refs)
            if message.arg_refs and not call.is_finished:
                self._tasks.start_soon(self._complete, actor, call)
            yield call
        finally:
            self._calls.pop(message.task, None)
            # Whoever asked is gone. What has begun goes on, for the sake of the actor's
            # state; but a generator has nobody to generate for.
            if not call.is_finished and not actor.withdraw(call) and call.stream is not None:
                actor.stop(call)

    async def _complete(self, actor: HostedActor, call: HostedCall) -> None:
        values = await self._host.arguments(call.message.arg_refs)
        if call.is_finished:
            return
        if isinstance(values, Failure):
            if actor.withdraw(call):
                call.fail(values)
        else:
            call.values = values
            actor.complete(call)

    def cancel(self, peer: PeerId, task: TaskId) -> None:
        """Interrupt a call of `peer`, or see to it that it does not begin."""
        found = self._calls.get(task)
        if found is None or found[1].caller != peer:
            return
        actor, call = found
        if actor.withdraw(call):
            reason = f"{call.message.method}() was cancelled before it began"
            call.fail(self._host.failure("cancelled", reason, may_have_run=False))
        else:
            actor.stop(call)

    def kill(self, actor: ActorId, *, no_restart: bool, reason: str) -> None:
        """End an actor's process, and the actor unless it may restart."""
        if (found := self._actors.get(actor)) is not None:
            found.kill(reason, no_restart=no_restart)

    def retire(self, reason: str) -> None:
        """Let none have another process."""
        for actor in self._actors.values():
            actor.retire(reason)

    def count(self) -> int:
        """How many live."""
        return sum(not actor.is_dead for actor in self._actors.values())

    def pid(self, actor: ActorId) -> int:
        """Of an actor's process; 0 while it has none."""
        found = self._actors.get(actor)
        return found.pid if found is not None else 0

    async def watch(self, actor: ActorId) -> AsyncGenerator[ActorState, None]:
        """An actor's state now and after each change, until it is dead."""
        found = self._actors.get(actor)
        if found is None:
            yield ActorState("dead", reason=f"there is no such actor on {self._host.name}")
            return
        async with aclosing(found.watch()) as states:
            async for state in states:
                yield state
