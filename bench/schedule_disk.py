"""What a replica of a schedule has on disk, and how it comes back from there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed
from lattica.store.chain import Link
from lattica.store.messages import Head
from lattica.store.notices import Verdict
from lattica.store.reading import Incoming
from lattica.store.replica import Replica, Snapshot, Taken
from lattica.store.sending import Batch, cut_batch, wanted

MANY = 10**9


class Disk:
    """Accepted envelopes in order, and a snapshot; the product keeps the same in SQLite."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.snapshot: Snapshot | None = None

    def take(self, replica: Replica, taken: Taken) -> None:
        """Keep what was accepted, drop what counts no more, and compare what is here only."""
        self.links += taken.links
        self.judge(taken.verdicts)
        for incoming in taken.archived:
            self.judge(self._compare(replica, incoming))

    def judge(self, verdicts: Iterable[Verdict]) -> None:
        """Drop what counts no more."""
        for author, upto, _, _ in verdicts:
            if upto is not None:
                self.links = [
                    link
                    for link in self.links
                    if link.envelope.author != author or link.sequence <= upto
                ]
                self.snapshot = None

    def compact(self, replica: Replica) -> None:
        """Let the replica forget its history."""
        self.snapshot = replica.take_snapshot()
        replica.archive(self.snapshot)

    def load(self, replica: Replica, notices: Replica, *, chunk: int) -> None:
        """Make an empty replica what was kept; `notices`: where those are."""
        replica.learn(notices.notices)
        bases: dict[PeerId, int] = {}
        if self.snapshot is not None:
            replica.restore(self.snapshot)
            bases = {mark.author: mark.sequence for mark in self.snapshot.chains}
        late = [
            link.envelope
            for link in self.links
            if link.sequence > bases.get(link.envelope.author, 0)
        ]
        for start in range(0, len(late), chunk):
            taken = replica.receive(late[start : start + chunk])
            assert not taken.refusals, taken.refusals
            assert not taken.waiting

    def missing(self, replica: Replica, heads: Sequence[Head]) -> Batch:
        """What a peer lacks, wherever it is kept."""
        batch = replica.missing(heads, limit=MANY)
        if batch is not None:
            return batch
        parts = {part.author: part for part in wanted(replica.chains.values(), heads, None)}
        chosen = []
        for link in self.links:
            part = parts.get(link.envelope.author)
            if part is not None and part.start < link.sequence <= part.stop:
                chosen.append(link)
        return cut_batch(chosen, MANY)

    def shown(self, replica: Replica, heads: Sequence[Head]) -> tuple[Signed, ...]:
        """Envelopes where a peer holds others."""
        found = list(replica.contradictions(heads))
        for head in heads:
            ours = self._at(head.author, head.sequence)
            if ours is not None and ours.hash != head.hash:
                found.append(ours.envelope)
        return tuple(found)

    def has(self, digest: bytes) -> bool:
        """Whether an envelope is here."""
        return any(link.hash == digest for link in self.links)

    def _compare(self, replica: Replica, incoming: Incoming) -> list[Verdict]:
        author, update = incoming.envelope.author, incoming.update
        ours = self._at(author, update.sequence)
        before = self._at(author, update.sequence - 1)
        if ours is not None and ours.hash != incoming.hash:
            return replica.contradicted(ours.envelope, incoming)
        if ours is None and before is not None and before.hash != update.previous:
            return replica.contradicted(before.envelope, incoming)
        return []

    def _at(self, author: PeerId, sequence: int) -> Link | None:
        for link in self.links:
            if link.envelope.author == author and link.sequence == sequence:
                return link
        return None
