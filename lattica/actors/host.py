"""Runs other peers' tasks and actors: leases in, supervised processes out.

An actor lives as long as its lease, and a lease ends when its owner has been gone for
`lease_ttl`: actors are not detached from their owners.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Protocol

import anyio
import anyio.abc
import psutil

from lattica.actors.core import Core
from lattica.actors.host_actors import HostedActors
from lattica.actors.host_runs import TaskRun
from lattica.actors.host_service import HostService
from lattica.actors.host_workers import LogListener, Workers
from lattica.actors.leases import CPU, GPU, MEMORY, Lease, Ledger
from lattica.actors.messages import (
    ActorCall,
    ActorId,
    ActorSpec,
    ActorState,
    Failure,
    LeaseId,
    LeaseReply,
    LeaseRequest,
    NodeInfo,
    ObjectId,
    Outcome,
    TaskId,
    TaskSpec,
    Value,
)
from lattica.actors.pool import Pool, WorkerKey
from lattica.actors.worker_process import WorkerProcess
from lattica.clock import Clock, SystemClock
from lattica.config import ActorsConfig
from lattica.errors import LatticaError, LeaseRefusedError
from lattica.identity.keys import PeerId
from lattica.link.interface import Link, Links

_RETRY_AFTER = 0.1  # seconds


class HostRpc(Protocol):
    """What a host needs of `lattica.rpc.Rpc`."""

    @property
    def local(self) -> PeerId:
        """This peer."""
        ...

    @property
    def links(self) -> Links:
        """To see who is gone."""
        ...

    def register(self, name: str, service: object) -> None:
        """Offer a service."""
        ...


class Host:
    """Everything that runs here for the mesh."""

    def __init__(
        self,
        rpc: HostRpc,
        name: str,
        resources: Mapping[str, float],
        labels: Mapping[str, str],
        core: Core,
        log_dir: Path,
        config: ActorsConfig | None = None,
        *,
        clock: Clock | None = None,
    ) -> None:
        """`resources`: CPU, GPU, memory (bytes) and custom ones; this machine's by default."""
        self._rpc = rpc
        self.name = name
        self._ledger = Ledger(_machine() | dict(resources), labels)
        self._core = core
        self._log_dir = log_dir
        self._config = config or ActorsConfig()
        self._clock = clock or SystemClock()
        self._leases: dict[LeaseId, Lease] = {}
        self._runs: dict[TaskId, TaskRun] = {}
        self._gone: dict[PeerId, float] = {}  # when the last link to a peer was lost
        self._is_closing = False
        self.counters: Counter[str] = Counter()
        self._workers: Workers
        self._pool: Pool
        self._actors: HostedActors
        self._tasks: anyio.abc.TaskGroup
        self._unsubscribe: Callable[[], None]

    async def __aenter__(self) -> Host:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._workers = Workers(
            self._rpc.local,
            self.name,
            self._core,
            self._log_dir,
            self._config,
            self.counters,
            self._tasks,
        )
        self._pool = Pool(
            lambda key: self._workers.start(key, "task"),
            self._clock,
            max_idle=self._config.idle_workers,
            idle_seconds=self._config.worker_idle,
        )
        self._actors = HostedActors(
            self, self._rpc.local, self._workers, self._tasks, self._clock, self.counters
        )
        self._unsubscribe = self._rpc.links.subscribe(self._on_link)
        self._rpc.register("host", HostService(self))
        self._tasks.start_soon(self._sweep)
        return self

    async def __aexit__(self, *details: object) -> None:
        self._unsubscribe()
        self._is_closing = True
        reason = "its host is shutting down"
        self._actors.retire(reason)
        await self._workers.close()
        for lease in tuple(self._leases.values()):
            self.end_lease(lease, reason)
        self._tasks.cancel_scope.cancel()
        # Not `details`: an error of the body is not one of the group's.
        await self._tasks.__aexit__(None, None, None)

    @property
    def forkserver_pid(self) -> int:
        """Of the process that forks the workers."""
        return self._workers.forker.pid

    def worker_pids(self) -> list[int]:
        """Of the living workers."""
        return self._workers.pids()

    def set_log_listener(self, listener: LogListener | None) -> None:
        """Have `listener(worker_name, pid, line)` called for each line that workers print."""
        self._workers.on_line = listener

    def node_info(self, addresses: Sequence[str] = (), scopes: Sequence[str] = ()) -> NodeInfo:
        """This host's capability record."""
        total, available = self._ledger.total, self._ledger.available
        cpus = total.get(CPU, 0.0)
        return NodeInfo(
            peer=self._rpc.local,
            name=self.name,
            addresses=tuple(addresses),
            total=dict(total),
            available={name: max(0.0, amount) for name, amount in available.items()},
            labels=dict(self._ledger.labels),
            scopes=tuple(scopes),
            load=max(0.0, 1.0 - available.get(CPU, 0.0) / cpus) if cpus else 0.0,
            actors=self._actors.count(),
        )

    # ------------------------------------------------------------------- leases

    def lease(self, peer: PeerId, request: LeaseRequest) -> LeaseReply:
        """Accept or decline; see `LeaseReply`."""
        requirements = request.requirements
        if self._is_closing:
            return LeaseReply(None, f"{self.name} is shutting down")
        if requirements.peer is not None and requirements.peer != self._rpc.local:
            return LeaseReply(None, f"{self.name} is not {requirements.peer.short}")
        refusal = self._ledger.refusal(requirements)
        if refusal is not None:
            self.counters["lease:declined"] += 1
            reason, later = refusal
            return LeaseReply(None, f"{self.name}: {reason}", _RETRY_AFTER if later else 0.0)
        gpus = self._ledger.take(requirements)
        lease = Lease(peer, requirements, gpus, self._clock.monotonic())
        self._leases[lease.id] = lease
        self.counters["lease:granted"] += 1
        return LeaseReply(lease.id)

    def renew(self, peer: PeerId, lease_id: LeaseId) -> bool:
        """Keep a lease; False: there is none."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.peer != peer:
            return False
        lease.renewed = self._clock.monotonic()
        return True

    def release(self, peer: PeerId, lease_id: LeaseId) -> None:
        """End a lease, and what runs on it."""
        lease = self._leases.get(lease_id)
        if lease is not None and lease.peer == peer:
            self.end_lease(lease, "its lease was released")

    def _find(self, peer: PeerId, lease_id: LeaseId) -> Lease:
        lease = self._leases.get(lease_id)
        if lease is None or lease.peer != peer:
            self.counters["refused:lease"] += 1
            raise LeaseRefusedError(f"{self.name} knows no such lease of {peer.short}; it ran out")
        lease.renewed = self._clock.monotonic()
        return lease

    def end_lease(self, lease: Lease, reason: str) -> None:
        """Take the resources back, and end what runs on them."""
        if lease.is_ended:
            return
        lease.is_ended = True
        del self._leases[lease.id]
        self.lend(lease, False)
        self._ledger.give_back(lease.requirements, lease.gpus)
        if lease.actor is not None:
            self._actors.kill(lease.actor, no_restart=True, reason=reason)
        for run in tuple(self._runs.values()):
            if run.lease is lease:
                run.abort(reason)
        if lease.worker is not None and not lease.uses:
            self._pool.give_back(self.key_of(lease), lease.worker)
            lease.worker = None

    def _on_link(self, link: Link, is_up: bool) -> None:
        peer = link.remote.peer
        if is_up:
            self._gone.pop(peer, None)
        elif any(lease.peer == peer for lease in self._leases.values()):
            self._gone[peer] = self._clock.monotonic()

    async def _sweep(self) -> None:
        while True:
            await anyio.sleep(self._config.lease_ttl / 4)
            self.sweep()

    def sweep(self) -> None:
        """End the leases whose time is over."""
        oldest = self._clock.monotonic() - self._config.lease_ttl
        for lease in tuple(self._leases.values()):
            lost = self._gone.get(lease.peer, -math.inf)
            if lease.renewed >= oldest or lost >= oldest:
                continue
            if lease.peer in self._gone:
                self.counters["lease:owner_gone"] += 1
                self.end_lease(lease, f"its owner {lease.peer.short} is gone")
            elif not lease.uses and lease.actor is None:
                self.counters["lease:unused"] += 1
                self.end_lease(lease, "its lease was not used")
        held = {lease.peer for lease in self._leases.values()}
        self._gone = {peer: lost for peer, lost in self._gone.items() if peer in held}
        self._pool.trim()

    # -------------------------------------------------------------------- tasks

    async def run(self, peer: PeerId, lease_id: LeaseId, spec: TaskSpec) -> list[Outcome]:
        """Run a task; one outcome per return.

        Raises:
            LeaseRefusedError: there is no such lease; the task did not run.
        """
        async with self._task_run(peer, lease_id, spec) as run:
            return await run.outcomes()

    async def run_stream(
        self, peer: PeerId, lease_id: LeaseId, spec: TaskSpec
    ) -> AsyncGenerator[Outcome, None]:
        """Run a generator; an error is its last item.

        Raises:
            LeaseRefusedError: there is no such lease; the task did not run.
        """
        async with (
            self._task_run(peer, lease_id, spec) as run,
            aclosing(run.items()) as items,
        ):
            async for outcome in items:
                yield outcome

    @asynccontextmanager
    async def _task_run(
        self, peer: PeerId, lease_id: LeaseId, spec: TaskSpec
    ) -> AsyncIterator[TaskRun]:
        lease = self._find(peer, lease_id)
        run = TaskRun(self, lease, spec)
        self.counters["tasks"] += 1
        self._runs[spec.task] = run
        lease.uses += 1
        try:
            yield run
        finally:
            self._runs.pop(spec.task, None)
            lease.uses -= 1
            lease.renewed = self._clock.monotonic()
            if lease.is_ended and not lease.uses and lease.worker is not None:
                self._pool.give_back(self.key_of(lease), lease.worker)
                lease.worker = None

    async def worker_of(self, lease: Lease) -> WorkerProcess:
        """The worker of a task lease.

        Raises:
            ActorsError: none could be started.
        """
        if lease.worker is None or not lease.worker.is_alive:
            lease.worker = await self._pool.take(self.key_of(lease))
            lease.worker.set_idle_listener(lambda is_idle: self.lend(lease, is_idle))
        return lease.worker

    def lend(self, lease: Lease, is_idle: bool) -> None:
        """A worker that only waits for others' results needs no CPU meanwhile."""
        if is_idle and not lease.is_lent and not lease.is_ended:
            self._ledger.lend(lease.requirements.cpus)
            lease.is_lent = True
        elif not is_idle and lease.is_lent:
            self._ledger.reclaim(lease.requirements.cpus)
            lease.is_lent = False

    async def arguments(self, refs: tuple[ObjectId, ...]) -> tuple[Value, ...] | Failure:
        """The values of a call's `arg_refs`, or why there is none of one of them."""
        if not refs:
            return ()
        # No deadline: arguments take as long as the tasks that make them. The owner cancels.
        try:
            outcomes = await self._core.get(refs, None)
        except LatticaError as error:
            text = f"an argument is not to be had on {self.name}: {error}"
            return self.failure("object_lost", text, may_have_run=False)
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                return outcome
        return tuple(outcome for outcome in outcomes if isinstance(outcome, Value))

    def failure(self, kind: str, message: str, *, may_have_run: bool) -> Failure:
        """A failure that happened here."""
        return Failure(
            kind,  # type: ignore[arg-type]
            message,
            self._rpc.local,
            self.name,
            may_have_run=may_have_run,
        )

    @property
    def config(self) -> ActorsConfig:
        """Limits."""
        return self._config

    def key_of(self, lease: Lease) -> WorkerKey:
        """The kind of worker that a lease needs."""
        requirements = lease.requirements
        threads = max(1, math.floor(requirements.cpus))
        return WorkerKey(lease.peer, requirements.memory, lease.gpus, threads)

    # ------------------------------------------------------------------- actors

    async def create_actor(
        self, peer: PeerId, lease_id: LeaseId, spec: ActorSpec
    ) -> Failure | None:
        """Start an actor; None once it is constructed.

        Raises:
            LeaseRefusedError: there is no such lease; nothing ran.
        """
        return await self._actors.create(self._find(peer, lease_id), spec)

    async def call(self, peer: PeerId, message: ActorCall) -> list[Outcome]:
        """Call a method; one outcome per return."""
        return await self._actors.call(peer, message)

    def call_stream(self, peer: PeerId, message: ActorCall) -> AsyncGenerator[Outcome, None]:
        """Call a generator method; an error is its last item."""
        return self._actors.call_stream(peer, message)

    def cancel(self, peer: PeerId, task: TaskId, *, force: bool) -> None:
        """Interrupt a task or call of `peer`; `force` ends a task's process."""
        if (run := self._runs.get(task)) is not None and run.lease.peer == peer:
            run.cancel(force=force)
        else:
            self._actors.cancel(peer, task)

    def kill(self, actor: ActorId, *, no_restart: bool, by: str) -> None:
        """End an actor's process, and the actor unless it may restart."""
        self._actors.kill(actor, no_restart=no_restart, reason=f"killed by {by}")

    def watch(self, actor: ActorId) -> AsyncGenerator[ActorState, None]:
        """An actor's state now and after each change, until it is dead."""
        return self._actors.watch(actor)


def _machine() -> dict[str, float]:
    return {
        CPU: float(psutil.cpu_count() or 1),
        GPU: 0.0,
        MEMORY: float(psutil.virtual_memory().total),
    }
