"""Names of actors: claimed by their owner in the DHT, and believed only if the owner agrees."""

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
from lattica.dht import Dht, dht_key
from lattica.errors import LatticaError, NameTakenError, NoSuchActorError
from lattica.identity import grants
from lattica.identity.keys import PeerId
from lattica.rpc import Rpc, method

log = logging.getLogger(__name__)
ACTOR = "actor"
ASK_TIMEOUT = 5.0  # seconds
LOOK_AGAIN = 10.0  # seconds
MAX_CLAIMS = 16  # of one name, looked at


class NameClaim(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An owner says that an actor of its bears a name."""

    name: str
    actor: ActorId
    since: float  # seconds since the Unix epoch, on the owner's clock


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

    async def claim(self, name: str, actor: ActorId) -> float:
        """Take a name for an actor that is ours; since when, for `hold`.

        Raises:
            NameTakenError: a live actor holds it.
        """
        await self._require_free(name, actor, float("inf"))
        since = self._clock.time()
        await self._dht.put(dht_key(ACTOR, name), ACTOR, NameClaim(name, actor, since))
        try:
            # Of two that claim at once, both see the other's record here, and one gives way.
            await self._require_free(name, actor, since)
        except NameTakenError:
            await self.give_up(name)
            raise
        return since

    async def hold(self, name: str, actor: ActorId, since: float) -> str:
        """Keep a name that was claimed; returns when it is lost, with why.

        Two may have claimed it where neither could see the other, in two halves of a mesh.
        When these meet again, the records do, and the later claim gives way.
        """
        async for _ in self._dht.watch(dht_key(ACTOR, name), ACTOR, NameClaim):
            try:
                while True:
                    if not await self._require_free(name, actor, since):
                        break
                    await anyio.sleep(LOOK_AGAIN)  # its owner may just be coming back
            except NameTakenError as error:
                await self.give_up(name)
                return str(error)
            except LatticaError as error:
                log.debug("the name %r could not be looked up: %s", name, error)
        raise AssertionError("a watch does not end")

    async def give_up(self, name: str) -> None:
        """The name is free again."""
        await self._dht.remove(dht_key(ACTOR, name), ACTOR)

    async def find(self, name: str) -> ActorInfo:
        """The live actor that has a name.

        Raises:
            NoSuchActorError: there is none.
        """
        for claim in await self._claims(name):
            info = await self._verify(claim)
            if info is not None:
                return info
        raise NoSuchActorError(
            f"no live actor is named {name!r}; names are given with .options(name=...)"
        )

    async def _require_free(self, name: str, actor: ActorId, since: float) -> bool:
        """Whether an earlier claim is there of which it cannot be told now if it still holds.

        Raises:
            NameTakenError: one holds.
        """
        is_open = False
        for claim in await self._claims(name):
            first = (claim.since, claim.actor) < (since, actor)
            if claim.actor == actor or not first:
                continue
            info = await self._verify(claim)
            if info is not None:
                owner = self._directory.name_of(info.owner)
                raise NameTakenError(
                    f"the name {name!r} is held by a live actor ({info.class_name} of {owner}); "
                    f"use lattica.get_actor({name!r}), or another name"
                )
            is_open = True
        return is_open

    async def _claims(self, name: str) -> list[NameClaim]:
        found = await self._dht.get(dht_key(ACTOR, name), ACTOR, NameClaim)
        claims = [
            record.value
            for record in found
            if record.value.name == name and owner_of(record.value.actor) == record.author
        ]
        return sorted(claims, key=lambda claim: (claim.since, claim.actor))[:MAX_CLAIMS]

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
