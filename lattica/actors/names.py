"""Names of actors: leased to one owner in the DHT, and believed only if the owner agrees."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, Protocol

import anyio
import msgspec

from lattica.actors.directory import Directory
from lattica.actors.messages import ActorId, ActorInfo, Failure
from lattica.actors.object_service import TRUSTED, require_trust
from lattica.clock import Clock
from lattica.dht import Dht, Holding, dht_key
from lattica.errors import LatticaError, NameTakenError, NoSuchActorError
from lattica.identity import grants
from lattica.identity.keys import PeerId
from lattica.rpc import Rpc, method

log = logging.getLogger(__name__)
ACTOR = "actor"
ASK_TIMEOUT = 5.0  # seconds
ASK_AGAIN = 1.0  # seconds between tries for a name whose holder does not answer
PATIENCE = 45.0  # seconds for them all: longer than a lease
MAX_CLAIMS = 16  # of one name, looked at


class NameClaim(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An owner says that an actor of its bears a name."""

    name: str
    actor: ActorId


class OwnedActorsView(Protocol):
    """What the service needs to know of this peer's own actors."""

    def info(self, actor: ActorId) -> ActorInfo | None:
        """All about an actor that is ours and not gone for good."""
        ...

    async def locate(self, actor: ActorId) -> ActorInfo | Failure:
        """Wait until the actor has a host."""
        ...

    async def kill(self, actor: ActorId, *, no_restart: bool) -> None:
        """End an actor's process."""
        ...


class ActorService:
    """Answers for the actors that this peer owns; registered as "actors"."""

    def __init__(self, owned: OwnedActorsView, counters: Counter[str]) -> None:
        self._owned = owned
        self._counters = counters

    @method(scope=None)
    async def info(self, actor: ActorId) -> ActorInfo | None:
        """All about an actor; None if it is gone for good, or was never ours."""
        require_trust(self._counters, "ask for actors")
        return self._owned.info(actor)

    @method(scope=None)
    async def locate(self, actor: ActorId) -> ActorInfo | Failure:
        """Where an actor is, once it is somewhere; why it will be nowhere."""
        require_trust(self._counters, "ask for actors")
        return await self._owned.locate(actor)

    @method(scope=grants.SUBMIT)
    async def kill(self, actor: ActorId, no_restart: bool) -> None:
        """End an actor's process."""
        await self._owned.kill(actor, no_restart=no_restart)


class Names:
    """Claims and finds names."""

    def __init__(self, rpc: Rpc, dht: Dht, directory: Directory, clock: Clock) -> None:
        self._rpc = rpc
        self._dht = dht
        self._directory = directory
        self._clock = clock
        dht.register_kind(
            ACTOR, NameClaim, check=lambda author, _, claim: owner_of(claim.actor) == author
        )

    async def claim(self, name: str, actor: ActorId) -> Holding:
        """Take a name for an actor that is ours; for `hold`.

        Where its holder does not say that it has such an actor, such as after a crash, this
        waits until the name is free: a lease at most.

        Raises:
            NameTakenError: a live actor holds it.
            DhtError: too few of the peers that decide can be reached.
        """
        key = dht_key(ACTOR, name)
        holding = await self._lease(name, key)
        try:
            await self._dht.put(key, ACTOR, NameClaim(name, actor))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await holding.release()
            raise
        return holding

    async def hold(self, name: str, holding: Holding) -> str:
        """Keep a name that was claimed; returns when it is lost, with why.

        Two may have it where neither could see the other, in two halves of a mesh. When
        these meet again the records do, and the leases are looked at without waiting.
        """
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._look_out, name, holding)
            error = await holding.keep()
            tasks.cancel_scope.cancel()
        await self._dht.remove(dht_key(ACTOR, name), ACTOR)
        return str(self._told(name, error, await self._held_by(name, error)))

    async def give_up(self, name: str, holding: Holding) -> None:
        """The name is free again."""
        await self._dht.remove(dht_key(ACTOR, name), ACTOR)
        await holding.release()

    async def find(self, name: str) -> ActorInfo:
        """The live actor that has a name.

        Raises:
            NoSuchActorError: there is none.
        """
        claims = await self._claims(name)
        if len(claims) > 1:
            # Anybody may say that it has the name. The leases tell, if enough of them do.
            holder = await self._dht.holder(dht_key(ACTOR, name))
            claims.sort(key=lambda claim: owner_of(claim.actor) != holder)
        for claim in claims:
            info = await self._verify(claim)
            if info is not None:
                return info
        raise NoSuchActorError(
            f"no live actor is named {name!r}; names are given with .options(name=...)"
        )

    async def _look_out(self, name: str, holding: Holding) -> None:
        try:
            async for claims in self._dht.watch(dht_key(ACTOR, name), ACTOR, NameClaim):
                if any(claim.author != self._rpc.local for claim in claims):
                    holding.look_now()
        except LatticaError as error:
            log.debug("the name %r is not watched: %s", name, error)

    async def _lease(self, name: str, key: bytes) -> Holding:
        give_up = self._clock.monotonic() + PATIENCE
        while True:
            try:
                return await self._dht.claim(key)
            except NameTakenError as error:
                taken = error
            info = await self._held_by(name, taken)
            if info is not None or self._clock.monotonic() > give_up:
                raise self._told(name, taken, info)
            await anyio.sleep(ASK_AGAIN)

    async def _held_by(self, name: str, error: NameTakenError) -> ActorInfo | None:
        """The actor for which the name is held, if its owner says so."""
        for claim in await self._claims(name):
            if owner_of(claim.actor) == error.holder:
                return await self._verify(claim)
        return None

    def _told(self, name: str, error: NameTakenError, info: ActorInfo | None) -> NameTakenError:
        why = f"is taken: {error}"
        if info is not None:
            owner = self._directory.name_of(info.owner)
            why = f"is held by a live actor ({info.class_name} of {owner})"
        told = NameTakenError(
            f"the name {name!r} {why}; use lattica.get_actor({name!r}), or another name"
        )
        told.holder = error.holder
        return told

    async def _claims(self, name: str) -> list[NameClaim]:
        found = await self._dht.get(dht_key(ACTOR, name), ACTOR, NameClaim)
        claims = [
            record.value
            for record in found
            if record.value.name == name and owner_of(record.value.actor) == record.author
        ]
        return claims[:MAX_CLAIMS]

    async def _verify(self, claim: NameClaim) -> ActorInfo | None:
        """The actor, if its owner can be reached, holds a grant, and says that it lives."""
        owner = owner_of(claim.actor)
        try:
            if owner != self._rpc.local:
                link = await self._directory.reach(owner)
                if not TRUSTED & link.remote.scopes:
                    return None
            service: Any = self._rpc.client(owner, ActorService, "actors", timeout=ASK_TIMEOUT)
            info: ActorInfo | None = await service.info(claim.actor)
        except LatticaError:
            return None
        return info if info is not None and info.name == claim.name else None


def owner_of(actor: ActorId) -> PeerId:
    """The peer that owns an actor: it is part of the id.

    Raises:
        ValueError: not an actor's id.
    """
    return PeerId(actor[:32])
