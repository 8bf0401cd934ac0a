"""Replicas of one document that a schedule drives, and what must hold of them in the end."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from bench.schedule_disk import MANY, Disk
from lattica.clock import ManualClock
from lattica.config import StoreConfig
from lattica.identity import grants
from lattica.identity.grants import Membership
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed
from lattica.store.chain import Link
from lattica.store.document import Document
from lattica.store.messages import envelope_hash
from lattica.store.replica import Replica, Taken

NOW = 1_000_000.0
NAME = "schedule"
TWIN = 500  # number of the identity that forks
AUTHORITY = Identity(b"authority".ljust(32, b"-"))


class Outcome(NamedTuple):
    """What a schedule came to. All but the counts at the end must be 0."""

    seed: int
    diverged: int  # replicas that read otherwise than the first
    lost: int  # acknowledged writes that a chain or the content lacks
    believed: int  # forgeries that were taken in or not counted
    refused_honest: int  # refusals of what no rule was broken for
    writes: int
    forged: int
    forks: int  # authors that were found to have forked
    actions: Counter[str]

    @property
    def is_good(self) -> bool:
        """Whether all that must hold held."""
        return not (self.diverged or self.lost or self.believed or self.refused_honest)


class Flight(NamedTuple):
    """An envelope on its way."""

    source: int
    target: int
    envelope: Signed


class Forgery(NamedTuple):
    """An envelope that nobody may take in, and what it was told to be."""

    envelope: Signed
    reason: str


class World:
    """The replicas of one document and all that is under way between them."""

    def __init__(self, rng: random.Random, count: int) -> None:
        self.rng = rng
        self.documents = [self._make(number, self._wrote) for number in range(1, count + 1)]
        self.disks = [Disk() for _ in self.documents]
        # Two copies of one key, which know nothing of each other: what they write forks.
        self.twins = [self._make(TWIN, lambda _: None) for _ in range(2)]
        self.islands = [0] * count
        self.flying: list[Flight] = []
        self.sent: list[Signed] = []  # acknowledged writes
        self.forgeries: list[Forgery] = []
        self.believed = 0
        self.refused_honest = 0
        self.counted: Counter[str] = Counter()  # by counter
        self.items: Counter[int] = Counter()  # of arrays: 1 is there, 0 was removed by somebody
        self.actions: Counter[str] = Counter()

    # ------------------------------------------------------------------------- the actors

    def _make(self, number: int, wrote: Callable[[Link], None]) -> Document:
        async def nothing() -> None: ...

        async def no_ruling(subject: PeerId, *, until: float | None) -> None: ...

        async def nowhere() -> AsyncIterator[Sequence[Link]]:
            nothing_kept: tuple[Sequence[Link], ...] = ()
            for links in nothing_kept:
                yield links

        member = identity(number)
        return Document(
            Replica(NAME, member, membership(member), StoreConfig()),
            ManualClock(NOW),
            wrote=wrote,
            flush=nothing,
            synced=nothing,
            rule=no_ruling,
            compact=nothing,
            archived=nowhere,
        )

    def _wrote(self, link: Link) -> None:
        envelope = link.envelope
        self.sent.append(envelope)
        source = next(
            index
            for index, each in enumerate(self.documents)
            if replica_of(each)._identity.peer_id == envelope.author
        )
        self.disks[source].links.append(link)
        self.flying += [
            Flight(source, target, envelope)
            for target in range(len(self.documents))
            if target != source
        ]

    def any(self) -> Document:
        """One of the documents."""
        return self.rng.choice(self.documents)

    # -------------------------------------------------------------------------- delivery

    def receive(self, target: Document, envelope: Signed) -> None:
        """Bring an envelope of an author that keeps to the rules."""
        self._receive(target, [envelope])

    def _receive(self, target: Document, envelopes: Iterable[Signed]) -> None:
        lies = [forgery.envelope for forgery in self.forgeries]
        for refusal in self._take(target, envelopes).refusals:
            # What waited for these may be a lie, which is found out only now; and what rests on
            # one branch of a fork does not fit where another is known, until both are.
            forks = self.actions["twin_speaks"] > 0
            self.refused_honest += refusal.envelope not in lies and not forks

    def _take(self, target: Document, envelopes: Iterable[Signed]) -> Taken:
        replica, disk = replica_of(target), self.disk_of(target)
        taken = replica.receive(envelopes)
        disk.take(replica, taken)
        if replica.is_stale:
            self.restart(target)
        return taken

    def restart(self, target: Document) -> None:
        """Come back from what is on disk."""
        old, disk = replica_of(target), self.disk_of(target)
        member = old._identity
        fresh = Replica(NAME, member, membership(member), StoreConfig())
        disk.load(fresh, old, chunk=self.rng.randint(1, 50))
        fresh.counters.update(old.counters)
        target.turn_to(fresh)

    def disk_of(self, target: Document) -> Disk:
        """Where a document is kept."""
        return self.disks[self.documents.index(target)]

    def lie(self, target: Document, forgery: Forgery) -> None:
        """Bring an envelope that must be refused, or must wait for what it rests on."""
        replica = replica_of(target)
        before = replica.state.digest(), sum(refusals(replica).values())
        taken = self._take(target, [forgery.envelope])
        if taken.refusals:
            counted = sum(refusals(replica).values()) > before[1]
            self.believed += not counted or replica.state.digest() != before[0]
        else:
            # What rests on something that is not here yet waits; `finish` brings it again.
            self.believed += not taken.waiting

    def sync(self, one: Document, other: Document) -> None:
        """A whole exchange, both ways."""
        before = None
        while (now := [known(replica_of(each)) for each in (one, other)]) != before:
            before = now
            for giver, taker in ((one, other), (other, one)):
                self._give(giver, taker)

    def _give(self, giver: Document, taker: Document) -> None:
        source, disk = replica_of(giver), self.disk_of(giver)
        target = replica_of(taker)
        self.disk_of(taker).judge(target.learn(source.lacking(target.notices.marks())))
        if target.is_stale:
            self.restart(taker)
        heads = replica_of(taker).heads()
        self._receive(taker, disk.shown(source, heads))
        self._receive(taker, disk.missing(source, replica_of(taker).heads()).envelopes)

    def hear(self, target: Document, twin: Document) -> None:
        """A replica takes what one of the twins tells it."""
        batch = replica_of(twin).missing(replica_of(target).heads(), limit=MANY)
        assert batch is not None
        self._receive(target, batch.envelopes)

    def tell(self, twin: Document, source: Document) -> None:
        """One of the twins takes what a replica has, of others: it must not learn of the other."""
        batch = self.disk_of(source).missing(replica_of(source), replica_of(twin).heads())
        others = [envelope for envelope in batch.envelopes if not is_twins(envelope)]
        replica_of(twin).receive(others)

    # ------------------------------------------------------------------------------ ends

    def finish(self, seed: int) -> Outcome:
        """Let all meet, and see what holds."""
        for _ in range(2):
            for one, other in both_ways(self.documents):
                self.sync(one, other)
        for forgery in self.forgeries:
            for document in self.documents:
                self.lie(document, forgery)
        digests = [document.digest() for document in self.documents]
        dicts = [document.to_dict() for document in self.documents]
        lost = sum(self._lost(document) for document in self.documents)
        return Outcome(
            seed,
            sum(
                digest != digests[0] or held != dicts[0]
                for digest, held in zip(digests, dicts, strict=True)
            ),
            lost,
            self.believed + sum(self._accepted_forgeries(each) for each in self.documents),
            self.refused_honest,
            len(self.sent),
            len(self.forgeries),
            len(replica_of(self.documents[0]).notices.forks()),
            self.actions,
        )

    def _lost(self, document: Document) -> int:
        disk = self.disk_of(document)
        missing = sum(not disk.has(envelope_hash(envelope)) for envelope in self.sent)
        counts = {
            root.name: document.counter(root.name).value
            for root in document.state.roots()
            if root.kind == "count"
        }
        missing += sum(counts.get(name, 0) != value for name, value in self.counted.items())
        held = Counter(item for name in "ab" for item in document.array(name))
        if not self.actions["twin_speaks"]:
            # What was put beside an entry that counts no more is gone with it.
            missing += sum(held[item] != count for item, count in self.items.items())
        missing += sum("\ufffd" in str(document.text(name)) for name in "tu")
        return missing

    def _accepted_forgeries(self, document: Document) -> int:
        disk = self.disk_of(document)
        return sum(disk.has(envelope_hash(forgery.envelope)) for forgery in self.forgeries)


def identity(number: int) -> Identity:
    """The same key for the same number, in every run."""
    return Identity(number.to_bytes(32, "big"))


def membership(member: Identity, *scopes: str, expires: float = NOW + 3600) -> Membership:
    """A grant signed by the authority; by default everything a member has."""
    grant = grants.issue(
        AUTHORITY,
        mesh=AUTHORITY.peer_id,
        subject=member.peer_id,
        scopes=scopes or grants.MEMBER,
        expires=expires,
    )
    return Membership(AUTHORITY.peer_id, (grant,))


def replica_of(document: Document) -> Replica:
    """What is behind a document."""
    return document._replica


def is_twins(envelope: Signed) -> bool:
    """Whether the author is the one that forks."""
    return envelope.author == identity(TWIN).peer_id


def known(replica: Replica) -> tuple[Any, ...]:
    """What another peer is told of it first."""
    return replica.heads(), replica.notices.marks()


def refusals(replica: Replica) -> dict[str, int]:
    """What it has refused, by reason."""
    return {key: n for key, n in replica.counters.items() if key.startswith("refused:")}


def both_ways(documents: list[Document]) -> Iterator[tuple[Document, Document]]:
    """Neighbours, from one end to the other and back: all then have what any had."""
    pairs = list(itertools.pairwise(documents))
    yield from pairs
    yield from reversed(pairs)
