"""What is on disk of one document, read back when it is needed."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TypeVar

import anyio
import msgspec

from lattica.errors import StoreError
from lattica.identity import wire
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed
from lattica.store.chains.chain import Link
from lattica.store.chains.messages import MAX_BATCH, Head, Heads, Notice, envelope_hash
from lattica.store.chains.replica import Refusal, Replica
from lattica.store.chains.sending import Batch, cut_batch, samples, wanted
from lattica.store.chains.snapshots import open_snapshot
from lattica.store.documents.database import Database, Part, Row
from lattica.store.documents.journal import Journal

log = logging.getLogger("lattica.store")

CHUNK = 512  # envelopes read between two turns of the event loop
CUT = ("forked", "revoked")  # reasons to refuse what does not count any more

T = TypeVar("T")


class Shelf:
    """The envelopes, notices and snapshot of a document in the peer's database."""

    def __init__(self, name: str, identity: Identity, database: Database, journal: Journal) -> None:
        self.name = name
        self._identity = identity
        self._database = database
        self._journal = journal

    async def load(self, replica: Replica, *, from_snapshot: bool) -> dict[PeerId, int]:
        """Make a fresh replica what was kept; up to where each author's chain is.

        What is on disk is checked like anything else.

        Raises:
            StoreError: the file cannot be read, or what it holds does not verify.
        """
        in_thread, database = self._journal.in_thread, self._database
        for data in await in_thread(database.notices, self.name):
            replica.learn([self._decode(data, Notice)])
        bases: dict[bytes, int] = {}
        data = await in_thread(database.snapshot, self.name) if from_snapshot else b""
        if data:
            snapshot = open_snapshot(data, self._identity, replica.mesh, self.name)
            if snapshot is None:
                log.warning("%s: its snapshot is damaged; all is read instead", self.name)
            else:
                replica.restore(snapshot)
                bases = {mark.author.raw: mark.sequence for mark in snapshot.chains}
        stored = await in_thread(database.load, self.name, bases)
        for start in range(0, len(stored), CHUNK):
            envelopes = [self._decode(data, Signed) for data in stored[start : start + CHUNK]]
            taken = replica.receive(envelopes)
            for refusal in taken.refusals:
                if not self._may_lack(replica, refusal):
                    raise self._damaged(refusal.error)
            if taken.waiting:
                raise self._damaged("an update is missing")
            await anyio.lowlevel.checkpoint()
        return {head.author: head.sequence for head in replica.heads()}

    async def missing(
        self, replica: Replica, theirs: Heads, committed: Mapping[PeerId, int], limit: int
    ) -> Batch:
        """What a peer lacks, of what is on disk only and what is not."""
        differing = {head.author for head, _ in await self.differing(replica, theirs)}
        parts = [
            Part(part.author.raw, part.start, part.stop)
            for part in wanted(replica.chains.values(), theirs, committed)
            if part.author not in differing
        ]
        rows, is_all = await self._journal.in_thread(self._database.read, self.name, parts, limit)
        return cut_batch(self._links(rows), limit * 2, is_all=is_all)

    async def shown(self, replica: Replica, theirs: Heads, limit: int) -> list[Signed]:
        """At most about `limit` bytes of envelopes where a peer holds others."""
        wanted_too = [
            (head.author, sequence)
            for head, _ in await self.differing(replica, theirs)
            for sequence in samples(head.sequence)
        ]
        found = []
        for envelope in (await self.at(wanted_too[:MAX_BATCH])).values():
            if limit > 0:
                found.append(envelope)
                limit -= len(envelope.payload)
        return found

    async def differing(self, replica: Replica, theirs: Heads) -> list[tuple[Head, Signed]]:
        """Heads at places that are on disk only here, where other envelopes are."""
        chains = replica.chains
        archived = [
            head
            for head in theirs
            if head.author in chains
            and head.sequence <= chains[head.author].base
            and chains[head.author].hash_at(head.sequence) != head.hash
        ]
        if not archived:
            return []
        kept = await self.at([(head.author, head.sequence) for head in archived])
        found = []
        for head in archived:
            ours = kept.get((head.author, head.sequence))
            if ours is not None and envelope_hash(ours) != head.hash:
                found.append((head, ours))
        return found

    async def at(self, places: Sequence[tuple[PeerId, int]]) -> dict[tuple[PeerId, int], Signed]:
        """The envelopes with these authors and numbers, as far as they are kept."""
        raw = [(author.raw, sequence) for author, sequence in places]
        rows = await self._journal.in_thread(self._database.at, self.name, raw)
        return {
            (PeerId(author), sequence): self._decode(data, Signed)
            for (author, sequence), data in rows.items()
        }

    async def archived(self, replica: Replica, limit: int) -> AsyncIterator[Sequence[Link]]:
        """The envelopes that are on disk only, in order."""
        chains = replica.chains.values()
        parts = {chain.author.raw: Part(chain.author.raw, 0, chain.base) for chain in chains}
        is_all = False
        while not is_all:
            rows, is_all = await self._journal.in_thread(
                self._database.read, self.name, tuple(parts.values()), limit
            )
            for row in rows:
                parts[row.author] = parts[row.author]._replace(start=row.sequence)
            yield self._links(rows)

    def _links(self, rows: Sequence[Row]) -> list[Link]:
        links = []
        for position, row in enumerate(rows):
            envelope = self._decode(row.envelope, Signed)
            digest = envelope_hash(envelope)
            links.append(Link(position, row.sequence, envelope, digest, 0.0, False))
        return links

    def _may_lack(self, replica: Replica, refusal: Refusal) -> bool:
        """Whether a row may be left out: cut since, or vouched for by one that never came."""
        if refusal.error.reason in CUT:
            return True
        author = refusal.envelope.author
        return (
            refusal.error.reason == "forged"
            and author in replica.chains
            and (author != self._identity.peer_id)
        )

    def _decode(self, data: bytes, kind: type[T]) -> T:
        try:
            return wire.decode(data, kind)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise self._damaged(error) from None

    def _damaged(self, why: object) -> StoreError:
        return StoreError(
            f"{self._database.path} is damaged at {self.name!r}: {why}; "
            "move it away to fetch the documents from peers again"
        )
