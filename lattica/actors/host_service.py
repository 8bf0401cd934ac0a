"""The host as other peers call it. Everything here needs the mesh's `submit` grant."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

from lattica.actors.messages import (
    ActorCall,
    ActorId,
    ActorSpec,
    ActorState,
    Failure,
    LeaseId,
    LeaseReply,
    LeaseRequest,
    Outcome,
    TaskId,
    TaskSpec,
)
from lattica.identity import grants
from lattica.rpc import caller, method

if TYPE_CHECKING:
    from lattica.actors.host import Host


class HostService:
    """Registered as "host". Nothing that arrives is unpickled in the host's own process."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @method(scope=grants.SUBMIT)
    async def lease(self, request: LeaseRequest) -> LeaseReply:
        """Ask for resources; a lease that is neither used nor renewed ends after its ttl."""
        return self._host.lease(caller().peer, request)

    @method(scope=grants.SUBMIT)
    async def renew(self, lease: LeaseId) -> bool:
        """Keep a lease; False: there is none."""
        return self._host.renew(caller().peer, lease)

    @method(scope=grants.SUBMIT)
    async def release(self, lease: LeaseId) -> None:
        """End a lease, and what runs on it."""
        self._host.release(caller().peer, lease)

    @method(scope=grants.SUBMIT)
    async def run(self, lease: LeaseId, spec: TaskSpec) -> list[Outcome]:
        """Run a task; one outcome per return.

        Raises:
            LeaseRefusedError: there is no such lease; the task did not run.
        """
        return await self._host.run(caller().peer, lease, spec)

    @method(scope=grants.SUBMIT)
    async def run_stream(self, lease: LeaseId, spec: TaskSpec) -> AsyncIterator[Outcome]:
        """Run a generator; an error is its last item.

        Raises:
            LeaseRefusedError: there is no such lease; the task did not run.
        """
        async with aclosing(self._host.run_stream(caller().peer, lease, spec)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    @method(scope=grants.SUBMIT)
    async def create_actor(self, lease: LeaseId, spec: ActorSpec) -> Failure | None:
        """Start an actor, which lives as long as the lease; None once it is constructed.

        Raises:
            LeaseRefusedError: there is no such lease; nothing ran.
        """
        return await self._host.create_actor(caller().peer, lease, spec)

    @method(scope=grants.SUBMIT)
    async def call(self, call: ActorCall) -> list[Outcome]:
        """Call a method; one outcome per return. Calls of one caller begin in order."""
        return await self._host.call(caller().peer, call)

    @method(scope=grants.SUBMIT)
    async def call_stream(self, call: ActorCall) -> AsyncIterator[Outcome]:
        """Call a generator method; an error is its last item."""
        async with aclosing(self._host.call_stream(caller().peer, call)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    @method(scope=grants.SUBMIT)
    async def cancel(self, task: TaskId, force: bool) -> None:
        """Interrupt a task or call of the caller; `force` ends a task's process."""
        self._host.cancel(caller().peer, task, force=force)

    @method(scope=grants.SUBMIT)
    async def kill(self, actor: ActorId, no_restart: bool) -> None:
        """End an actor's process, and the actor unless it may restart."""
        context = caller()
        self._host.kill(actor, no_restart=no_restart, by=context.name or context.peer.short)

    @method(scope=grants.SUBMIT)
    async def watch(self, actor: ActorId) -> AsyncIterator[ActorState]:
        """An actor's state now and after each change, until it is dead."""
        async with aclosing(self._host.watch(actor)) as states:
            async for state in states:
                yield state
