"""What a peer of the DHT answers to others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec

from lattica.clock import Clock
from lattica.config import DhtConfig
from lattica.dht.bequest import MAX_CLAIMS, Bequest
from lattica.dht.digests import contacts_digest, records_digest
from lattica.dht.keys import KEY_BYTES
from lattica.dht.lease_keeper import LeaseKeeper
from lattica.dht.messages import FindReply, Lease, clean_addresses
from lattica.dht.routing import PeerNode, Table
from lattica.dht.storage import Kept, Storage
from lattica.dht.watching import Watchers
from lattica.errors import BadArgumentsError, RecordError
from lattica.identity import grants, wire
from lattica.identity.signed import Signed
from lattica.rpc import Buffer, caller, method

MAX_WAITING = 16_384  # watches at a time; `DhtConfig.max_watches` says no before


class DhtService:
    """Kademlia's calls over RPC. Strangers may look things up, and no more."""

    def __init__(
        self,
        table: Table,
        storage: Storage,
        *,
        addresses: Callable[[], tuple[str, ...]],
        seen: Callable[[PeerNode], None],
        watchers: Watchers,
        leases: LeaseKeeper,
        bequest: Bequest,
        config: DhtConfig,
        clock: Clock,
        counters: Counter[str],
    ) -> None:
        """`seen(node)` is told of every member of the mesh that calls."""
        self._table = table
        self._storage = storage
        self._addresses = addresses
        self._seen = seen
        self._watchers = watchers
        self._leases = leases
        self._bequest = bequest
        self._config = config
        self._clock = clock
        self._counters = counters

    @method(scope=None)
    async def ping(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
        """Tell where each end can be dialled; the answer shows that this end lives."""
        self._note_caller(addresses)
        return self._addresses()

    @method(scope=None)
    async def find(
        self,
        target: bytes,
        kind: str,
        addresses: tuple[str, ...],
        contacts: bytes = b"",
        records: bytes = b"",
    ) -> FindReply:
        """The contacts closest to `target`; with a `kind`, its records under that key too.

        Left out are contacts and records whose digest the caller tells: it has just these.
        """
        if len(target) != KEY_BYTES:
            self._counters["refused:bad_target"] += 1
            raise BadArgumentsError(f"a target is {KEY_BYTES} bytes, not {len(target)}")
        asking = self._note_caller(addresses)
        place = int.from_bytes(target, "big")
        closest = self._table.closest(place, self._config.k, {asking.id})
        if contacts and contacts == self._contacts_digest(closest, place):
            closest = []
        kept = self._storage.get(target, kind, now=self._clock.time()) if kind else []
        if records and records == records_digest(each.envelope for each in kept):
            kept = []
        return FindReply(
            self._addresses(),
            tuple(node.contact for node in closest),
            Buffer(self._pack(kept)),
        )

    @method(scope=grants.CALL)
    async def store(self, envelope: Signed, addresses: tuple[str, ...]) -> None:
        """Keep the caller's own record.

        Only its author may store a record so; see `hand_over` for what others may do.

        Raises:
            RecordError: see `Storage.store`.
        """
        self._note_caller(addresses)
        if envelope.author != caller().peer:
            self._counters["refused:author"] += 1
            raise RecordError("a record is stored by its author and by nobody else")
        self._storage.store(envelope, now=self._clock.time(), root=caller().root)

    @method(scope=grants.CALL)
    async def hand_over(self, records: Buffer, addresses: tuple[str, ...]) -> int:
        """Keep what others have said, as a peer does that leaves; how many were kept.

        `records` is MessagePack of a tuple of Signed. Signatures say who spoke, sequences what
        is newest, and a tombstone lives as long as what it took back, so nothing can be
        forged, and what an author has taken away is not believed where its word is known.

        Raises:
            RecordError: too many bytes, or not decodable.
        """
        self._note_caller(addresses)
        if len(records.data) > self._config.max_transfer:
            self._counters["refused:transfer"] += 1
            raise RecordError(f"hand over at most {self._config.max_transfer} bytes at once")
        try:
            envelopes = wire.decode(bytes(records.data), tuple[Signed, ...])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self._counters["refused:transfer"] += 1
            raise RecordError("these are no records") from None
        kept = 0
        now, sponsor, root = self._clock.time(), caller().peer, caller().root
        for envelope in envelopes:
            try:
                self._storage.store(envelope, now=now, sponsor=sponsor, root=root)
            except RecordError:
                continue  # counted there
            kept += 1
        return kept

    @method(scope=grants.CALL, max_concurrency=MAX_WAITING)
    async def watch(self, target: bytes, kind: str, known: bytes) -> bytes:
        """A digest of what is said under a key, as soon as it is another than `known`.

        After half a minute it is told in any case.

        Raises:
            BusyError: the caller watches too many keys here, or all do.
        """
        if len(target) != KEY_BYTES:
            raise BadArgumentsError(f"a target is {KEY_BYTES} bytes, not {len(target)}")
        return await self._watchers.wait(caller().peer, target, kind, known, self._clock.time())

    @method(scope=grants.CALL)
    async def lease(self, claim: Signed, addresses: tuple[str, ...]) -> Lease | None:
        """Have a key for a while, or give it up; the answer says who has it now.

        Raises:
            RecordError: see `LeaseKeeper.ask`; or too many claims, or another's.
            BusyError: there is no room.
        """
        self._note_caller(addresses)
        if claim.author != caller().peer:
            self._counters["refused:author"] += 1
            raise RecordError("a key is claimed by who wants it and by nobody else")
        self._storage.charge(claim.author, now=self._clock.time())
        return await self._leases.ask(claim, root=caller().root)

    @method(scope=grants.CALL)
    async def bequeath(self, claims: tuple[Signed, ...], addresses: tuple[str, ...]) -> int:
        """Take over leases from a replica that leaves; how many were. See `Bequest.take`.

        Raises:
            RecordError: too many at once, or too fast.
        """
        sender = self._note_caller(addresses)
        if len(claims) > MAX_CLAIMS:
            self._counters["refused:bequest"] += 1
            raise RecordError(f"hand over at most {MAX_CLAIMS} leases at once")
        taken = 0
        for claim in claims:
            self._storage.charge(sender.peer, now=self._clock.time())
            taken += await self._bequest.take(claim, sender, root=caller().root)
        self._counters["refused:bequest"] += len(claims) - taken
        return taken

    @method(scope=grants.CALL)
    async def leased(self, target: bytes) -> Lease | None:
        """Who has a key, as this peer has granted it."""
        return self._leases.told(target)

    def _contacts_digest(self, closest: list[PeerNode], place: int) -> bytes:
        """As the caller makes it: this peer is among those that it knows."""
        nodes = [*closest, self._table.node]
        nodes.sort(key=lambda node: node.long_id ^ place)
        return contacts_digest(nodes[: self._config.k])

    def _note_caller(self, addresses: tuple[str, ...]) -> PeerNode:
        call = caller()
        node = PeerNode(call.peer, clean_addresses(addresses))
        if grants.allows(call.scopes, grants.CALL):
            self._seen(node)
        return node

    def _pack(self, records: list[Kept]) -> bytes:
        chosen: list[Signed] = []
        room = self._config.max_reply
        for kept in records:
            room -= len(kept.envelope.payload) + 256  # the envelope around the payload
            if room < 0:
                self._counters["truncated:reply"] += 1
                break
            chosen.append(kept.envelope)
        return wire.encode(tuple(chosen)) if chosen else b""
