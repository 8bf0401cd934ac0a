"""One open document: its replica, its face, and the way to disk and peers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence

import anyio

from lattica.clock import Clock
from lattica.config import StoreConfig
from lattica.errors import GrantError
from lattica.identity import grants, wire
from lattica.identity.grants import Membership
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed
from lattica.store.chains.chain import Link
from lattica.store.chains.messages import (
    Envelopes,
    Head,
    Heads,
    Marks,
    Notice,
    Notices,
    envelope_hash,
)
from lattica.store.chains.notices import Verdict, rule
from lattica.store.chains.reading import Incoming
from lattica.store.chains.replica import Refusal, Replica
from lattica.store.chains.sending import MAX_SHOWN, Batch
from lattica.store.chains.snapshots import seal_snapshot
from lattica.store.documents.awareness import Awareness
from lattica.store.documents.database import Database, NoticeRow, Row, SnapshotRow
from lattica.store.documents.document import Document
from lattica.store.documents.glances import Roots
from lattica.store.documents.journal import Journal
from lattica.store.documents.presence import PresenceBook
from lattica.store.documents.shelf import CHUNK, CUT, Shelf
from lattica.store.documents.showing import Shown, show

log = logging.getLogger("lattica.store")


class OpenCopy:
    """What `Documents` keeps of an open document."""

    def __init__(
        self,
        name: str,
        identity: Identity,
        membership: Membership,
        config: StoreConfig,
        clock: Clock,
        database: Database,
        journal: Journal,
        counters: Counter[str],
        authority: Identity | None,
        *,
        changed: Callable[[], None],
        stale: Callable[[], None],
        synced: Callable[[], Awaitable[None]],
        moved: Callable[[], None],
    ) -> None:
        """`counters` count refusals; `changed`: there may be something to push; `stale`: what
        peers have may be taken in where it was refused; `moved`: what this peer says of itself is
        another."""
        self.name = name
        self._counters = counters
        self._authority = authority
        self._identity = identity
        self._membership = membership
        self._config = config
        self._database = database
        self._journal = journal
        self._changed = changed
        self._stale = stale
        self._committed: dict[PeerId, int] = {}
        self._compacting = False
        self._reading_again = anyio.Lock()
        self._showing = anyio.Lock()
        self._shelf = Shelf(name, identity, database, journal)
        self.replica = self._fresh()
        self.presence = PresenceBook(name, identity, membership, config)
        self.document = Document(
            self.replica,
            clock,
            wrote=lambda link: self._accepted([link]),
            flush=journal.flush,
            synced=synced,
            rule=self.rule,
            compact=self.compact,
            archived=lambda: self._shelf.archived(self.replica, config.sync_batch),
            awareness=Awareness(self.presence, moved),
        )

    # ----------------------------------------------------------------------- from disk

    async def load(self, *, from_snapshot: bool = True) -> None:
        """Read the document back; what is on disk is checked like anything else.

        Raises:
            StoreError: the file cannot be read, or what it holds does not verify.
        """
        self._committed = await self._shelf.load(self.replica, from_snapshot=from_snapshot)

    async def _read_again(self) -> None:
        """A notice cuts what is on disk only: make the replica anew from there."""
        async with self._reading_again:
            while self.replica.is_stale:
                old, fresh = self.replica, self._fresh()
                fresh.learn(old.notices)
                await self._journal.flush()
                committed = await self._shelf.load(fresh, from_snapshot=False)
                if fresh.is_stale or old.state.writing:
                    continue
                # What was accepted meanwhile.
                batch = old.missing(fresh.heads(), limit=self._config.max_author_log)
                if batch is None or not batch.is_complete:
                    continue
                fresh.receive(batch.envelopes)
                fresh.learn(old.notices)
                fresh.counters.update(old.counters)
                self.replica, self._committed = fresh, committed
                self.document.turn_to(fresh)
                self.document.notify_of(fresh.chains)
                self._changed()
                self._stale()

    # ------------------------------------------------------------------------ with peers

    def heads(self) -> Heads:
        """See `Copy`."""
        return self.replica.heads()

    def marks(self) -> Marks:
        """See `Copy`."""
        return self.replica.notices.marks()

    def lacking(self, theirs: Marks) -> Notices:
        """See `Copy`."""
        return self.replica.lacking(theirs)

    async def missing(self, theirs: Heads) -> Batch:
        """See `Copy`."""
        limit, committed = self._config.sync_batch, self._committed
        batch = self.replica.missing(theirs, limit=limit, committed=committed)
        if batch is not None:
            return batch
        return await self._shelf.missing(self.replica, theirs, committed, limit)

    async def contradictions(self, theirs: Heads) -> Envelopes:
        """Envelopes that show a peer that authors have forked."""
        found = self.replica.contradictions(theirs)
        size = sum(len(envelope.payload) for envelope in found)
        return (*found, *await self._shelf.shown(self.replica, theirs, MAX_SHOWN - size))

    async def receive(self, source: PeerId, envelopes: Envelopes) -> bool:
        """See `Copy`."""
        is_whole = True
        for start in range(0, len(envelopes), CHUNK):
            if start:
                await anyio.lowlevel.checkpoint()
            taken = self.replica.receive(envelopes[start : start + CHUNK])
            for refusal in taken.refusals:
                self._refused(source, refusal)
                # Whoever sends what does not count has not heard of it.
                is_whole = is_whole and refusal.error.reason not in CUT
            is_whole = is_whole and not taken.waiting
            self._accepted(taken.links)
            self._judged(taken.verdicts)
            for incoming in taken.archived:
                is_whole = await self._compare(incoming) and is_whole
        if self.replica.is_stale:
            await self._read_again()
        return is_whole

    async def learn(self, notices: Iterable[Notice]) -> None:
        """See `Copy`."""
        verdicts = self.replica.learn(notices)
        if not verdicts:
            return
        self._judged(verdicts)
        taken = self.replica.receive(())
        self._accepted(taken.links)
        self._judged(taken.verdicts)
        if self.replica.is_stale:
            await self._read_again()

    def reached(self, envelopes: Sequence[Signed]) -> Heads:
        """Heads that whoever sent `envelopes` is known to have."""
        links = [self.replica.find(envelope) for envelope in envelopes]
        return tuple(Head(k.envelope.author, k.sequence, k.hash) for k in links if k)

    async def show(self, roots: Roots) -> Shown:
        """Answer a glance with proofs; one at a time, for each reads the whole document."""
        async with self._showing:
            return await show(self.document, self.replica, self._shelf, roots)

    async def _compare(self, incoming: Incoming) -> bool:
        """Whether an envelope is the one that is on disk in its place; if not, it is a fork."""
        author, update = incoming.envelope.author, incoming.update
        here, last = (author, update.sequence), (author, update.sequence - 1)
        kept = await self._shelf.at([here, last])
        ours, before = kept.get(here), kept.get(last)
        if ours is not None and envelope_hash(ours) == incoming.hash:
            return True
        contradicted = ours or before
        if contradicted is None or (
            ours is None and envelope_hash(contradicted) == update.previous
        ):
            return True  # what is there has been cut meanwhile
        self._judged(self.replica.contradicted(contradicted, incoming))
        return False

    # -------------------------------------------------------------------------- to disk

    async def rule(self, subject: PeerId, *, until: float | None) -> None:
        """Grant (`until` a time in seconds since the Unix epoch) or revoke (None) by a ruling.

        Raises:
            GrantError: this peer is not the mesh's authority.
            StoreError: the disk does not take it.
        """
        authority = self._authority
        if authority is None:
            raise GrantError(
                "only the mesh's authority may grant and revoke; do it where the mesh was founded"
            )
        if until is None:
            chain = self.replica.chains.get(subject)
            notice = rule(
                authority, self.name, subject, upto=chain.head if chain is not None else 0
            )
        else:
            grant = grants.issue(
                authority,
                mesh=self.replica.mesh,
                subject=subject,
                scopes=(grants.WRITE + self.name,),
                expires=until,
            )
            given = Membership(self.replica.mesh, (grant,))
            notice = rule(authority, self.name, subject, membership=given)
        self.replica.notices.require(notice)
        await self.learn([notice])
        await self._journal.flush()

    async def compact(self) -> None:
        """Write a snapshot, and let the disk alone keep what it covers.

        Raises:
            StoreError: the disk does not take it.
        """
        self._start_compacting()
        await self._journal.flush()

    def _accepted(self, links: Sequence[Link]) -> None:
        if not links:
            return
        rows = [
            Row(self.name, link.envelope.author.raw, link.sequence, wire.encode(link.envelope))
            for link in links
        ]
        reached = {link.envelope.author: link.sequence for link in links}

        def committed() -> None:
            # Only now may they leave: a peer that forgot what others hold of it would fork.
            self._committed.update(reached)
            self._changed()
            total = sum(chain.head for chain in self.replica.chains.values())
            if self.replica.unarchived >= max(self._config.snapshot_every, total // 8):
                self._start_compacting()

        self._journal.add(rows, committed)
        self.document.notify(links)

    def _judged(self, verdicts: Sequence[Verdict]) -> None:
        """Keep what was learned about authors, and pass it on."""
        for verdict in verdicts:
            row = NoticeRow(
                self.name, verdict.author.raw, verdict.upto, wire.encode(verdict.notice)
            )
            self._journal.add([row], self._changed)
            if verdict.upto is not None:
                self._counters[verdict.reason] += 1
                kept = self._committed.get(verdict.author, 0)
                self._committed[verdict.author] = min(kept, verdict.upto)
                log.warning(
                    "%s: %s was %s: its updates after %d do not count",
                    self.name,
                    verdict.author.short,
                    verdict.reason if verdict.reason == "revoked" else "found to have forked",
                    verdict.upto,
                )
        if any(verdict.upto is not None for verdict in verdicts):
            # What rests on a branch that was not held here has been refused until now.
            self._stale()
        if verdicts:
            self.document.notify_of(verdict.author for verdict in verdicts)

    def _start_compacting(self) -> None:
        if self._compacting or self.replica.state.writing or not self.replica.unarchived:
            return
        self._compacting = True
        replica = self.replica
        snapshot = replica.take_snapshot()
        data = seal_snapshot(self._identity, replica.mesh, self.name, snapshot)

        def committed() -> None:
            self._compacting = False
            if self.replica is replica:
                replica.archive(snapshot)

        self._journal.add([SnapshotRow(self.name, data)], committed)

    def _refused(self, source: PeerId, refusal: Refusal) -> None:
        reason = refusal.error.reason
        self._counters[f"refused:{reason}"] += 1
        log.log(
            logging.DEBUG if reason in CUT else logging.WARNING,
            "%s: refused an update by %s, brought by %s: %s",
            self.name,
            refusal.envelope.author.short,
            source.short,
            refusal.error,
        )

    def _fresh(self) -> Replica:
        return Replica(self.name, self._identity, self._membership, self._config)
