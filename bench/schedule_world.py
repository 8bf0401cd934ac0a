"""Replicas of one document that a schedule drives, and what must hold of them in the end."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from bench.schedule_keys import NAME, NOW, identity, membership
from bench.schedule_node import Node, exchange
from lattica.identity import wire
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed
from lattica.store.chains.messages import Update
from lattica.store.chains.replica import Replica, Taken
from lattica.store.crdt.kinds import COUNT, GONE
from lattica.store.crdt.quick import read_body
from lattica.store.documents.document import Document

__all__ = ["NAME", "NOW", "Forgery", "Outcome", "World", "identity", "membership"]


class Outcome(NamedTuple):
    """What a schedule came to. All but the counts at the end must be 0."""

    seed: int
    diverged: int  # replicas that read otherwise than the first
    lost: int  # acknowledged writes that a chain or the content lacks
    believed: int  # forgeries that were taken in or not counted, and authors not cut
    refused_honest: int  # refusals of what no rule was broken for
    writes: int
    forged: int
    forks: int  # that were found
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
        self.nodes = [Node(number, self._acknowledge) for number in range(1, count + 1)]
        self.islands = [0] * count
        self.flying: list[Flight] = []
        self.sent: list[Signed] = []  # acknowledged writes
        self.forgeries: list[Forgery] = []
        self.cut: dict[
            PeerId, int | None
        ] = {}  # authors of whom so many updates count; None: if found
        self.believed = 0
        self.refused_honest = 0
        self.counted: Counter[str] = Counter()  # by counter
        self.items: dict[int, int] = {}  # of arrays: 1 is there, 0 was removed by somebody
        self.serial = itertools.count()
        self.actions: Counter[str] = Counter()

    # ------------------------------------------------------------------------- the actors

    @property
    def documents(self) -> list[Document]:
        """The replicas' faces."""
        return [node.document for node in self.nodes]

    def any(self) -> Document:
        """One of the documents."""
        return self.rng.choice(self.nodes).document

    def then(self, document: Document, effect: Callable[[], None]) -> None:
        """What was written to a document has this effect once it is acknowledged."""
        next(node for node in self.nodes if node.document is document).after_commit(effect)

    def _acknowledge(self, node: Node, envelope: Signed) -> None:
        self.sent.append(envelope)
        source = self.nodes.index(node)
        self.flying += [
            Flight(source, target, envelope)
            for target in range(len(self.nodes))
            if target != source
        ]

    # -------------------------------------------------------------------------- delivery

    def receive(self, target: Node, envelope: Signed) -> None:
        """Bring an envelope of an author that keeps to the rules."""
        self._judge([target.receive([envelope])])

    def sync(self, one: Node, other: Node) -> None:
        """A whole exchange, both ways."""
        self._judge(exchange(one, other))

    def lie(self, target: Node, forgery: Forgery) -> None:
        """Bring an envelope that must be refused, or must wait for what it rests on."""
        replica = target.replica
        before = replica.state.digest(), sum(refusals(replica).values())
        taken = target.receive([forgery.envelope])
        if taken.refusals:
            counted = sum(refusals(replica).values()) > before[1]
            self.believed += not counted or replica.state.digest() != before[0]
        else:
            # What rests on something that is not here yet waits; `finish` brings it again.
            self.believed += not taken.waiting and has_effect(replica, forgery)

    def _judge(self, received: Iterable[Taken]) -> None:
        if self.cut:
            # What rests on one branch of a fork does not fit the other: until the fork is
            # found, a peer with that one refuses it. `_lost` tells whether it is taken later.
            return
        lies = [forgery.envelope for forgery in self.forgeries]
        for taken in received:
            # What waited for these may be a lie, which is found out only now.
            self.refused_honest += sum(refusal.envelope not in lies for refusal in taken.refusals)

    # ------------------------------------------------------------------------------ ends

    def finish(self, seed: int) -> Outcome:
        """Let all meet, and see what holds."""
        for node in self.nodes:
            node.commit()
        for _ in range(2):
            for one, other in both_ways(self.nodes):
                self.sync(one, other)
                one.commit()
                other.commit()
        for forgery in self.forgeries:
            for node in self.nodes:
                self.lie(node, forgery)
        read = [self._read(node) for node in self.nodes]
        return Outcome(
            seed,
            sum(each != read[0] for each in read),
            sum(self._lost(node) for node in self.nodes),
            self.believed + sum(self._uncut(node) for node in self.nodes),
            self.refused_honest,
            len(self.sent),
            len(self.forgeries),
            len(self.nodes[0].replica.notices.forks()),
            self.actions,
        )

    def _read(self, node: Node) -> object:
        heads = sorted((head.author.raw, head.sequence, head.hash) for head in node.heads())
        return node.document.digest(), node.document.to_dict(), heads

    def _lost(self, node: Node) -> int:
        document = node.document
        missing = sum(not node.holds(envelope) for envelope in self.sent)
        counts = {
            root.name: document.counter(root.name).value
            for root in document.state.roots()
            if root.kind == "count"
        }
        missing += sum(counts.get(name, 0) != value for name, value in self.counted.items())
        held = Counter(item for name in "ab" for item in document.array(name))
        missing += sum(held[item] != count for item, count in self.items.items())
        missing += sum("\ufffd" in str(document.text(name)) for name in "tu")
        return missing

    def _uncut(self, node: Node) -> int:
        found = sum(
            node.holds(forgery.envelope) and has_effect(node.replica, forgery)
            for forgery in self.forgeries
        )
        for author, upto in self.cut.items():
            if upto is None:
                continue
            verdict = node.replica.notices.cut(author)
            chain = node.replica.chains.get(author)
            found += verdict is None or verdict.upto != upto
            found += chain is not None and chain.head > upto
        return found


def has_effect(replica: Replica, forgery: Forgery) -> bool:
    """Whether a lie that was taken in says in the content what it may not.

    One may come to rest on something else than what it was made for: on entries that were cut,
    and then it is nowhere; or, when a crash has lost those, on others that their author wrote
    anew, and then it is an ordinary update of a writer.
    """
    facts = read_body(wire.decode(forgery.envelope.payload, Update).body)
    places = replica.state.ledger.places(facts.client or 0, facts.start, facts.end)
    if forgery.reason == "miscounting":
        return any(place.kind == COUNT for place in places)
    return any(place.kind != GONE for place in places)


def refusals(replica: Replica) -> dict[str, int]:
    """What it has refused, by reason."""
    return {key: n for key, n in replica.counters.items() if key.startswith("refused:")}


def both_ways(nodes: list[Node]) -> Iterator[tuple[Node, Node]]:
    """Neighbours, from one end to the other and back: all then have what any had."""
    pairs = list(itertools.pairwise(nodes))
    yield from pairs
    yield from reversed(pairs)
