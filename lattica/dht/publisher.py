"""The records a peer says itself: sealed, replicated, kept alive, taken back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import anyio
from kademlia.node import Node

from lattica.clock import Clock
from lattica.config import DhtConfig
from lattica.dht.keys import checked
from lattica.dht.protocol import DhtProtocol
from lattica.dht.records import Kinds, Record, seal
from lattica.dht.routing import PeerNode
from lattica.dht.storage import Storage
from lattica.errors import DhtError, LatticaError, RecordError
from lattica.identity import wire
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed

MAX_PARALLEL = 8  # records republished at one time
MICROSECONDS = 1_000_000


class Owned(NamedTuple):
    """A record that is kept alive."""

    value: bytes
    ttl: float
    expires: float
    latest: float = 0.0  # the latest expiry that any copy of it may have


class Place(NamedTuple):
    """Who keeps the records under a key, nearest first, as far as is known."""

    holders: tuple[PeerNode, ...]
    looked: float  # when everybody was last asked for the closest, in monotonic seconds,
    checked: float  # and when the nearest was


class Replication(NamedTuple):
    """How a record's copies fared."""

    acknowledged: int
    asked: int
    refusals: tuple[LatticaError, ...]


class Publisher:
    """Says things under keys for as long as the peer lives."""

    def __init__(
        self,
        identity: Identity,
        storage: Storage,
        kinds: Kinds,
        protocol: DhtProtocol,
        *,
        closest: Callable[[bytes], Awaitable[list[PeerNode]]],
        config: DhtConfig,
        clock: Clock,
    ) -> None:
        """`closest(key)` looks up the live peers closest to a key."""
        self._identity = identity
        self._storage = storage
        self._kinds = kinds
        self._protocol = protocol
        self._closest = closest
        self._config = config
        self._clock = clock
        self._owned: dict[tuple[bytes, str], Owned] = {}
        self._places: dict[bytes, Place] = {}
        self._sequence = 0

    def own(self, key: bytes, kind: str, value: Any, ttl: float | None = None) -> Signed:
        """Seal a value, keep it here, and republish it from now on.

        Raises:
            RecordError: unknown kind, or a value, key or ttl that does not fit.
        """
        ttl = self._config.record_ttl if ttl is None else ttl
        if not 0 < ttl <= self._config.max_ttl:
            raise RecordError(f"ttl must be above 0 and at most {self._config.max_ttl:.0f} s")
        checked(key)
        try:
            data = wire.encode(value)
        except (TypeError, ValueError, NotImplementedError, RecursionError) as error:
            raise RecordError(
                f"the value of a {kind!r} record cannot be encoded: {error}"
            ) from None
        return self._say(key, kind, Owned(data, ttl, self._clock.time() + ttl))

    def disown(self, key: bytes, kind: str) -> Signed | None:
        """Stop republishing, and seal a tombstone; None if nothing is owned there.

        The tombstone outlives the record, so that no copy can come back after it.
        """
        owned = self._owned.pop((key, kind), None)
        if owned is None:
            return None
        expires = max(owned.latest, self._clock.time() + 1.0)
        envelope = self._seal(Record(key, kind, self._next_sequence(), expires, b"", removed=True))
        self._storage.store(envelope, now=self._clock.time(), own=True)
        return envelope

    def forget(self, key: bytes, kind: str) -> None:
        """Undo `own` where no other peer took the record."""
        self._owned.pop((key, kind), None)
        if not any(owned_key == key for owned_key, _ in self._owned):
            self._places.pop(key, None)
        self._storage.discard(key, kind, self._identity.peer_id)

    def owns(self, key: bytes, kind: str) -> bool:
        """Whether the record is being kept alive."""
        return (key, kind) in self._owned

    def owned(self) -> list[tuple[bytes, str]]:
        """What is being kept alive."""
        return list(self._owned)

    async def replicate(self, key: bytes, envelope: Signed) -> Replication:
        """Have the peers closest to `key` keep a record.

        Who they are is remembered: a look-up costs a hundred times what one copy does. The
        nearest of them, who knows its neighbours best, is asked now and then who has come.
        """
        place = self._places.get(key)
        now = self._clock.monotonic()
        if place is not None and now - place.looked < self._config.look_up_every:
            if now - place.checked >= self._config.place_every:
                place = await self._check(key, place)
            done, kept = await self._store(place.holders, envelope)
            if kept and 4 * len(kept) >= 3 * len(place.holders):
                self._remember(key, place._replace(holders=kept))
                return done
        done, kept = await self._store(await self._closest(key), envelope)
        self._remember(key, Place(kept, now, now))
        return done

    async def _store(
        self, nodes: Sequence[PeerNode], envelope: Signed
    ) -> tuple[Replication, tuple[PeerNode, ...]]:
        """Store with the first that take it, until there are enough copies."""
        kept: dict[PeerId, PeerNode] = {}
        refusals: list[LatticaError] = []
        left = list(nodes)

        async def store(node: PeerNode) -> None:
            error = await self._protocol.call_store(node, envelope)
            if error is None:
                kept[node.peer] = node
            else:
                refusals.append(error)

        while left and len(kept) < self._config.replicas:
            count = self._config.replicas - len(kept)
            now, left = left[:count], left[count:]
            async with anyio.create_task_group() as stores:
                for node in now:
                    stores.start_soon(store, node)
        done = Replication(len(kept), len(kept) + len(refusals), tuple(refusals))
        return done, tuple(node for node in nodes if node.peer in kept)

    async def _check(self, key: bytes, place: Place) -> Place:
        """Ask the nearest holder who is near, and take in those who have come."""
        place = place._replace(checked=self._clock.monotonic())
        for holder in place.holders:
            answer = await self._protocol.call_find_node(holder, Node(key))
            if answer is not None:
                where = int.from_bytes(key, "big")
                known = {node.peer: node for node in (*answer.nodes, *place.holders)}
                ranked = sorted(known.values(), key=lambda node: node.long_id ^ where)
                return place._replace(holders=tuple(ranked[: self._config.replicas]))
        return place

    def _remember(self, key: bytes, place: Place) -> None:
        if any(owned_key == key for owned_key, _ in self._owned):
            self._places[key] = place
        else:
            self._places.pop(key, None)

    async def republish(self, *, only_due: bool = False) -> int:
        """Say what is owned again with a later expiry; how many some other peer took.

        Due is what is `republish_every` seconds old, or a third of a shorter ttl.
        """
        room = anyio.CapacityLimiter(MAX_PARALLEL)
        kept = 0

        async def again(key: bytes, kind: str) -> None:
            nonlocal kept
            async with room:
                owned = self._owned.get((key, kind))
                if owned is None:  # removed while we waited for room
                    return
                fresh = owned._replace(expires=self._clock.time() + owned.ttl)
                done = await self.replicate(key, self._say(key, kind, fresh))
                kept += done.acknowledged > 0

        async with anyio.create_task_group() as records:
            for (key, kind), owned in tuple(self._owned.items()):
                if not only_due or self._is_due(owned):
                    records.start_soon(again, key, kind)
        return kept

    def _is_due(self, owned: Owned) -> bool:
        age = self._clock.time() - (owned.expires - owned.ttl)
        return age >= min(self._config.republish_every, owned.ttl / 3)

    def _say(self, key: bytes, kind: str, owned: Owned) -> Signed:
        record = Record(key, kind, self._next_sequence(), owned.expires, owned.value)
        envelope = self._seal(record)
        self._storage.store(envelope, now=self._clock.time(), own=True)
        before = self._owned.get((key, kind))
        latest = owned.expires if before is None else max(before.latest, owned.expires)
        self._owned[key, kind] = owned._replace(latest=latest)
        return envelope

    def _seal(self, record: Record) -> Signed:
        self._kinds.check(self._identity.peer_id, record)
        return seal(self._identity, record)

    def _next_sequence(self) -> int:
        # The clock makes a restarted peer's records newer than those it said before.
        self._sequence = max(self._sequence + 1, int(self._clock.time() * MICROSECONDS))
        return self._sequence


def require_replica(done: Replication) -> int:
    """The number of peers that keep a copy.

    Raises:
        DhtError: there are other peers and none took it.
    """
    if done.acknowledged or not done.asked:
        return done.acknowledged
    reasons = sorted({str(error) for error in done.refusals})[:3]
    raise DhtError(
        f"none of {done.asked} peers keeps the record ({'; '.join(reasons)}). "
        "Check that this peer's ticket grants 'call' and that all peers know the record's kind"
    )
