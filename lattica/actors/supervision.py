"""The actors that this peer owns: where each one is, and what happens when its host is gone.

A host restarts an actor's process in place by itself. What is left to the owner: choosing
the host, noticing that it is gone, and placing the actor anew if restarts are left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import anyio
import anyio.abc
import msgspec

from lattica.actors.failures import carrier_of
from lattica.actors.leasing import Lease, Leasing
from lattica.actors.messages import ActorId, ActorInfo, ActorSpec, ActorState, Failure, ObjectId
from lattica.actors.names import Names
from lattica.dht import Holding
from lattica.errors import (
    CallLostError,
    LatticaError,
    LinkError,
    NameTakenError,
    NoPlacementError,
)
from lattica.identity.keys import PeerId

CREATE_TIMEOUT = float("inf")  # a constructor may load a model; a lost link ends the call
KILL_TIMEOUT = 5.0  # seconds
REMEMBERED = 1024  # actors that are gone, whose cause can still be told
PLACE_ATTEMPTS = 8  # hosts lost before the constructor ran

log = logging.getLogger("lattica.actors")


class Arguments(Protocol):
    """What creation needs of the object table."""

    async def dependencies(self, ids: tuple[ObjectId, ...]) -> Failure | None:
        """Wait until all are there; the first failure among them."""
        ...

    def hold(self, ids: tuple[ObjectId, ...]) -> Callable[[], None]:
        """Keep objects until the result is called."""
        ...


class OwnedActor:
    """One actor of ours."""

    def __init__(self, spec: ActorSpec, let_go: Callable[[], None]) -> None:
        """`let_go` releases the constructor's arguments."""
        self.spec = spec
        self._let_go: Callable[[], None] | None = let_go
        self.lease: Lease | None = None
        self.building: Lease | None = None  # where its constructor runs now
        self.restarts = 0  # so far, in place and elsewhere
        self.failure: Failure | None = None  # set once it is gone for good
        self.held: Holding | None = None  # its name
        self.keeping = anyio.CancelScope()
        self.killed = False
        self._settled = asyncio.Event()  # it has a host, or it is gone for good

    @property
    def name(self) -> str:
        """What it is called; empty while it does not hold that name."""
        return self.spec.name if self.held is not None and self.held.is_held else ""

    @property
    def host(self) -> PeerId | None:
        """Where it lives now."""
        return self.lease.peer if self.lease is not None and self._settled.is_set() else None

    def arrived(self, lease: Lease) -> None:
        """It lives."""
        self.lease = lease
        self._settled.set()

    def moving(self) -> None:
        """It lives nowhere for now."""
        self.lease = None
        self._settled.clear()

    def gone(self, failure: Failure) -> None:
        """It will not come back."""
        self.lease = None
        self.failure = self.failure or failure  # the first cause is the one to tell
        self.keeping.cancel()
        self.let_go()
        self._settled.set()

    def let_go(self) -> None:
        """The constructor's arguments are needed no more."""
        if self._let_go is not None:
            self._let_go()
            self._let_go = None

    async def locate(self) -> ActorInfo | Failure:
        """Where it is, once it is somewhere."""
        await self._settled.wait()  # as long as placement and construction take
        return self.failure if self.failure is not None else self.info()

    def info(self) -> ActorInfo:
        """All that a handle needs."""
        spec = self.spec
        return ActorInfo(
            actor=spec.actor,
            owner=spec.owner,
            host=self.host or spec.owner,
            class_name=spec.class_name,
            name=self.name,
            methods=spec.methods,
            signatures=spec.signatures,
            max_task_retries=spec.max_task_retries,
        )


class Supervisor:
    """Creates, watches, moves and ends the actors of one owner."""

    def __init__(
        self,
        leasing: Leasing,
        names: Names,
        arguments: Arguments,
        name_of: Callable[[PeerId], str],
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self._leasing = leasing
        self._names = names
        self._arguments = arguments
        self._name_of = name_of
        self._tasks = tasks
        self._actors: dict[ActorId, OwnedActor] = {}

    def find(self, actor: ActorId) -> OwnedActor | None:
        """An actor of ours."""
        return self._actors.get(actor)

    def info(self, actor: ActorId) -> ActorInfo | None:
        """See `OwnedActorsView.info`."""
        found = self._actors.get(actor)
        return found.info() if found is not None and found.failure is None else None

    async def locate(self, actor: ActorId) -> ActorInfo | Failure:
        """See `OwnedActorsView.locate`."""
        found = self._actors.get(actor)
        if found is None:
            return Failure(
                "actor_died",
                "the peer that owned the actor was started anew since, or the actor is gone",
                may_have_run=False,
            )
        return await found.locate()

    async def create(self, spec: ActorSpec) -> None:
        """Create an actor; returns once it is constructed.

        Raises:
            NameTakenError: a live actor holds its name.
            _Failed: with what the first call will be told.
        """
        hold = self._arguments.hold((*spec.arg_refs, *spec.args.refs))
        actor = self._actors[spec.actor] = OwnedActor(spec, hold)
        self._forget_old()
        try:
            await self._create(actor)
        except NameTakenError as error:
            actor.gone(Failure("actor_died", str(error), may_have_run=False))
            raise
        except NoPlacementError as error:
            await self._end(actor, Failure("no_placement", str(error), may_have_run=False))
            raise
        except asyncio.CancelledError:
            actor.gone(self._death(actor, "its creation was cancelled"))
            raise
        finally:
            # A restart elsewhere needs the arguments again.
            if spec.max_restarts == 0:
                actor.let_go()

    async def kill(self, actor: ActorId, *, no_restart: bool) -> None:
        """See `OwnedActorsView.kill`."""
        found = self._actors.get(actor)
        if found is None or found.failure is not None:
            return
        if no_restart:
            found.killed = True
            lease = found.lease or found.building
            await self._end(found, self._death(found, "it was killed"))
        else:
            lease = found.lease
        if lease is not None:
            await self._kill_at(lease, actor, no_restart=no_restart)
            if no_restart:
                self._leasing.release(lease)

    async def close(self) -> None:
        """End all actors."""
        living = [actor for actor in self._actors.values() if actor.failure is None]
        await asyncio.gather(*(self.kill(each.spec.actor, no_restart=True) for each in living))

    def _forget_old(self) -> None:
        gone = [each for each, actor in self._actors.items() if actor.failure is not None]
        for each in gone[: max(0, len(gone) - REMEMBERED)]:
            del self._actors[each]

    async def _create(self, actor: OwnedActor) -> None:
        spec = actor.spec
        if spec.name:
            actor.held = await self._names.claim(spec.name, spec.actor)
            self._tasks.start_soon(self._hold_name, actor, actor.held)
        failure = await self._arguments.dependencies(spec.arg_refs)
        if failure is None:
            failure = await self._place(actor, spec)
        if failure is not None:
            await self._end(actor, failure)
            raise carrier_of(failure)

    async def _hold_name(self, actor: OwnedActor, held: Holding) -> None:
        """Until the actor is gone, or another turns out to have its name: then it has none.

        It lives on for those who hold its handle.
        """
        with actor.keeping:
            why = await self._names.hold(actor.spec.name, held)
            actor.held = None
            log.warning("actor %s has lost its name: %s", actor.spec.class_name, why)

    async def _place(
        self, actor: OwnedActor, spec: ActorSpec, avoid: frozenset[PeerId] = frozenset()
    ) -> Failure | None:
        """Find a host and construct the actor there; None once it lives."""
        failure: Failure | None = None
        for _ in range(PLACE_ATTEMPTS):
            lease = await self._leasing.acquire(
                spec.requirements,
                "actor",
                spec.class_name,
                wanted=lambda: not actor.killed,
                avoid=avoid,
            )
            if lease is None:
                return actor.failure or self._death(actor, "it was killed")
            actor.building = lease
            try:
                host = self._leasing.host(lease.peer, CREATE_TIMEOUT)
                with self._leasing.doubts.waiting(lease.peer):
                    failure = await host.create_actor(lease.lease, spec)
            except (CallLostError, LinkError) as error:
                self._leasing.lost(lease, peer_too=True)
                failure = self._death(actor, f"its host was lost at its creation: {error}", lease)
                avoid |= {lease.peer}
                continue
            except LatticaError as error:
                self._leasing.release(lease)
                failure = self._death(actor, f"its host could not create it: {error}", lease)
                avoid |= {lease.peer}
                continue
            finally:
                actor.building = None
            if failure is not None:
                self._leasing.release(lease)
                return failure
            if actor.killed:
                await self._kill_at(lease, spec.actor, no_restart=True)
                self._leasing.release(lease)
                return self._death(actor, "it was killed")
            actor.arrived(lease)
            self._tasks.start_soon(self._watch, actor, lease)
            return None
        return failure

    async def _watch(self, actor: OwnedActor, lease: Lease) -> None:
        """Follow an actor for as long as it lives on one host."""
        before = actor.restarts
        state: ActorState | None = None
        reason = ""
        try:
            with self._leasing.doubts.waiting(lease.peer):
                async for state in self._leasing.host(lease.peer).watch(actor.spec.actor):
                    actor.restarts = before + state.restarts
                    if state.state == "dead":
                        break
        except (CallLostError, LinkError) as error:
            reason = f"its host was lost: {error}"
        except LatticaError as error:
            reason = f"its host no longer answers for it: {error}"
        if actor.failure is not None or actor.lease is not lease:
            return
        if state is not None and state.state == "dead":
            self._leasing.release(lease)
            await self._end(actor, self._death(actor, state.reason or "it ended", lease))
            return
        self._leasing.lost(lease, peer_too=True)
        await self._move(actor, lease, reason or "its host gave it up")

    async def _move(self, actor: OwnedActor, lease: Lease, reason: str) -> None:
        spec = actor.spec
        death = self._death(actor, reason, lease)
        left = -1 if spec.max_restarts < 0 else spec.max_restarts - actor.restarts
        if left == 0 or spec.max_restarts == 0 or left < -1:
            await self._end(actor, death)
            return
        log.warning("placing actor %s anew: %s", spec.class_name, reason)
        actor.moving()
        actor.restarts += 1
        anew = msgspec.structs.replace(spec, max_restarts=left if left < 0 else left - 1)
        try:
            failure = await self._place(actor, anew, frozenset({lease.peer}))
        except NoPlacementError as error:
            message = f"{death.message}; it cannot be placed anew: {error}"
            failure = msgspec.structs.replace(death, message=message)
        if failure is not None:
            await self._end(actor, failure)

    async def _end(self, actor: OwnedActor, failure: Failure) -> None:
        actor.gone(failure)
        held, actor.held = actor.held, None
        if held is not None:
            try:
                await self._names.give_up(actor.spec.name, held)
            except LatticaError as error:
                log.debug("the name %r was not given up: %s", actor.spec.name, error)

    async def _kill_at(self, lease: Lease, actor: ActorId, *, no_restart: bool) -> None:
        try:
            await self._leasing.host(lease.peer, KILL_TIMEOUT).kill(actor, no_restart)
        except LatticaError as error:
            log.debug("killing an actor on %s: %s", lease.peer.short, error)

    def _death(self, actor: OwnedActor, reason: str, lease: Lease | None = None) -> Failure:
        lease = lease or actor.lease
        name = self._name_of(lease.peer) if lease is not None else ""
        where = f" on peer {name}" if name else ""
        return Failure(
            "actor_died",
            f"actor {actor.spec.class_name}{where} is gone: {reason}",
            peer=lease.peer if lease is not None else None,
            peer_name=name,
            may_have_run=False,
        )
