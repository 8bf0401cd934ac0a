"""One replica of a schedule with a disk of its own, which may crash at any time.

It does in memory what `lattica.store.documents.open_copy` does with SQLite: what was accepted is
pending until it is committed, only what is committed leaves, and a crash loses the rest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from bench.schedule_keys import NAME, NOW, identity, membership
from lattica.clock import ManualClock
from lattica.config import StoreConfig
from lattica.identity import wire
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed
from lattica.store.chains.chain import Link
from lattica.store.chains.messages import Head, Mark, Notice, Update, envelope_hash
from lattica.store.chains.notices import Verdict
from lattica.store.chains.replica import Replica, Snapshot, Taken
from lattica.store.chains.sending import samples, wanted
from lattica.store.documents.document import Document

MANY = 10**9
CHUNK = 7  # envelopes read back in one go


class Node:
    """A replica, its document, and its disk."""

    def __init__(self, number: int, acknowledged: Callable[[Node, Signed], None]) -> None:
        """`acknowledged` is told of own writes when they are committed."""
        self.peer = identity(number).peer_id
        self._number = number
        self._acknowledged = acknowledged
        self._rows: list[tuple[Update, Signed]] = []  # on disk, in the order of acceptance
        self._hashes: set[bytes] = set()
        self._notices: list[Notice] = []
        self._snapshot: Snapshot | None = None
        self._pending: list[Callable[[], None]] = []
        self._committed: dict[PeerId, int] = {}
        self.replica = self._fresh()
        self.document = self._document()

    # ----------------------------------------------------------------------------- disk

    def after_commit(self, effect: Callable[[], None]) -> None:
        """Do this when what was written until now is safe."""
        self._pending.append(effect)

    def commit(self) -> None:
        """All that is pending is on disk."""
        pending, self._pending = self._pending, []
        for write in pending:
            write()

    def crash(self) -> None:
        """Lose what is pending, and read the rest back."""
        self._pending.clear()
        self._turn_to(self._load(self._snapshot))

    def compact(self) -> None:
        """Write a snapshot; when it is on disk, the history is there alone."""
        replica = self.replica
        if not replica.recent():
            return
        snapshot = replica.take_snapshot()

        def committed() -> None:
            self._snapshot = snapshot
            if self.replica is replica:
                replica.archive(snapshot)

        self._pending.append(committed)

    def holds(self, envelope: Signed) -> bool:
        """Whether an envelope was accepted and still counts, in memory or on disk only."""
        if self.replica.find(envelope) is not None:
            return True
        digest = envelope_hash(envelope)
        if digest not in self._hashes:
            return False
        chain = self.replica.chains.get(envelope.author)
        sequence = wire.decode(envelope.payload, Update).sequence
        return chain is not None and sequence <= chain.base

    def _load(self, snapshot: Snapshot | None) -> Replica:
        replica = self._fresh()
        replica.learn(self._notices)
        bases: dict[PeerId, int] = {}
        if snapshot is not None:
            replica.restore(snapshot)
            bases = {mark.author: mark.sequence for mark in snapshot.chains}
        rows = [row for update, row in self._rows if update.sequence > bases.get(row.author, 0)]
        for start in range(0, len(rows), CHUNK):
            taken = replica.receive(rows[start : start + CHUNK])
            refused = {refusal.error.reason for refusal in taken.refusals}
            assert refused <= {"forked", "revoked"}, refused
            assert not taken.waiting
        return replica

    def _turn_to(self, replica: Replica) -> None:
        self.replica = replica
        self.document.turn_to(replica)
        self._committed = {head.author: head.sequence for head in replica.heads()}

    def _read_again(self) -> None:
        while self.replica.is_stale:
            self.commit()
            replica = self._load(None)
            replica.counters.update(self.replica.counters)
            self._turn_to(replica)

    # ------------------------------------------------------------------------ with others

    def receive(self, envelopes: Iterable[Signed]) -> Taken:
        """Take envelopes in."""
        taken = self.replica.receive(envelopes)
        self._keep(taken)
        for incoming in taken.archived:
            rows = self._at(incoming.envelope.author)
            sequence = incoming.update.sequence
            ours, before = rows.get(sequence), rows.get(sequence - 1)
            contradicted = ours or before
            if contradicted is None or (
                envelope_hash(contradicted)
                == (incoming.hash if ours is not None else incoming.update.previous)
            ):
                continue
            self._judge(self.replica.contradicted(contradicted, incoming))
        self._read_again()
        return taken

    def learn(self, notices: Iterable[Notice]) -> None:
        """Take notices in."""
        verdicts = self.replica.learn(notices)
        if verdicts:
            self._judge(verdicts)
            self._keep(self.replica.receive(()))
            self._read_again()

    def marks(self) -> tuple[Mark, ...]:
        """What notices say here."""
        return self.replica.notices.marks()

    def heads(self) -> tuple[Head, ...]:
        """How far each author's chain goes here."""
        return self.replica.heads()

    def lacked_by(self, theirs: Sequence[Head]) -> list[Signed]:
        """What is safe here and a peer lacks, and what shows it that authors have forked."""
        found = list(self.replica.contradictions(theirs))
        differing = set()
        for head in theirs:
            chain = self.replica.chains.get(head.author)
            if chain is None or not chain.base or head.sequence > chain.base:
                continue
            rows = self._at(head.author)
            ours = rows.get(head.sequence)
            if ours is not None and envelope_hash(ours) != head.hash:
                differing.add(head.author)
                found += [rows[sequence] for sequence in samples(head.sequence)]
        batch = self.replica.missing(theirs, limit=MANY, committed=self._committed)
        if batch is not None:
            return [*found, *batch.envelopes]
        parts = {
            part.author: part
            for part in wanted(self.replica.chains.values(), theirs, self._committed)
            if part.author not in differing
        }
        return found + [
            row
            for update, row in self._rows
            if (part := parts.get(row.author)) is not None
            and part.start < update.sequence <= part.stop
        ]

    def _keep(self, taken: Taken) -> None:
        for link in taken.links:
            self._pending.append(self._writing(link.envelope))
        self._judge(taken.verdicts)

    def _judge(self, verdicts: Iterable[Verdict]) -> None:
        for verdict in verdicts:
            if verdict.upto is not None:
                kept = self._committed.get(verdict.author, 0)
                self._committed[verdict.author] = min(kept, verdict.upto)
            self._pending.append(self._noting(verdict))

    def _writing(self, envelope: Signed) -> Callable[[], None]:
        def committed() -> None:
            update = wire.decode(envelope.payload, Update)
            self._rows.append((update, envelope))
            self._hashes.add(envelope_hash(envelope))
            self._committed[envelope.author] = update.sequence
            if envelope.author == self.peer:
                self._acknowledged(self, envelope)

        return committed

    def _noting(self, verdict: Verdict) -> Callable[[], None]:
        def committed() -> None:
            self._notices.append(verdict.notice)
            if verdict.upto is not None:
                self._snapshot = None  # it may hold what does not count any more

        return committed

    def _at(self, author: PeerId) -> dict[int, Signed]:
        return {update.sequence: row for update, row in self._rows if row.author == author}

    # ------------------------------------------------------------------------------ parts

    def _fresh(self) -> Replica:
        member = identity(self._number)
        return Replica(NAME, member, membership(member), StoreConfig())

    def _document(self) -> Document:
        async def nothing() -> None: ...

        async def no_ruling(subject: PeerId, *, until: float | None) -> None: ...

        async def nowhere() -> AsyncIterator[Sequence[Link]]:
            nothing_kept: tuple[Sequence[Link], ...] = ()
            for links in nothing_kept:
                yield links

        return Document(
            self.replica,
            ManualClock(NOW),
            wrote=lambda link: self._pending.append(self._writing(link.envelope)),
            flush=nothing,
            synced=nothing,
            rule=no_ruling,
            compact=nothing,
            archived=nowhere,
        )


def exchange(one: Node, other: Node) -> list[Taken]:
    """All that each has and may give, until neither has more; what became of it."""
    found = []
    before = None
    while (now := (one.heads(), one.marks(), other.heads(), other.marks())) != before:
        before = now
        for giver, taker in ((one, other), (other, one)):
            taker.learn(giver.replica.lacking(taker.marks()))
            found.append(taker.receive(giver.lacked_by(taker.heads())))
    return found
