"""One peer's copy of a document, sans I/O: envelopes go in, content and envelopes come out.

Every peer accepts the same envelopes of an author in the same order, whoever brings them:
the signature, the chain and the grants inside it are all that counts.
"""

from __future__ import annotations

import contextlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from lattica.config import StoreConfig
from lattica.errors import DocumentError, GrantError, SignatureError
from lattica.identity import grants, wire
from lattica.identity.grants import Membership
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed
from lattica.store.chain import Chain, Link, Standing, standing
from lattica.store.messages import DOMAIN, MAX_AUTHORS, MAX_BATCH, Head, Update, envelope_hash
from lattica.store.refusals import RefusedError
from lattica.store.state import State, client_id
from lattica.store.update import UpdateFacts, read_update

OVERHEAD = 8192  # bytes of an envelope beside pycrdt's update


class Batch(NamedTuple):
    """Envelopes in an order that can be applied."""

    envelopes: tuple[Signed, ...]
    heads: tuple[Head, ...]  # of the authors in it: where whoever takes it in arrives
    is_complete: bool  # whether nothing else is missing


class Evidence(NamedTuple):
    """Two envelopes of one author that cannot both stand."""

    accepted: Signed
    other: Signed


class Replica:
    """A document's content, its authors' chains, and the rules for taking more in."""

    def __init__(
        self, name: str, identity: Identity, membership: Membership, config: StoreConfig
    ) -> None:
        self.name = name
        self.mesh = membership.mesh
        self.counters: Counter[str] = Counter()
        self.evidence: list[Evidence] = []
        self.state = State(client_id(identity.peer_id))
        self.chains: dict[PeerId, Chain] = {}
        self._identity = identity
        self._membership = membership
        self._config = config
        self._scope = grants.WRITE + name
        self._known: dict[bytes, Link] = {}
        self._clients: dict[int, PeerId] = {}
        self._accepted: list[Link] = []
        self._waiting = 0  # envelopes
        self._waiting_size = 0  # bytes
        self._shown: Membership | None = None  # the membership that our own chain holds

    # ------------------------------------------------------------------ our own writes

    def require_write(self, now: float) -> None:
        """Check that this peer may write.

        Raises:
            GrantError: it holds no `write:<document>` grant, or the grant has expired.
        """
        ground = standing(self._membership, self._identity.peer_id)
        if not grants.allows(ground.scopes, self._scope):
            raise GrantError(f"this peer's ticket does not grant {self._scope!r}")
        if ground.expires <= now:
            raise GrantError(f"this peer's grant {self._scope!r} has expired; join again")

    @contextlib.contextmanager
    def transaction(self, now: float) -> Iterator[list[Link]]:
        """Group writes to `state`; the yielded list holds the new link afterwards.

        A transaction that raises changes nothing.

        Raises:
            GrantError: see `require_write`.
            DocumentError: what was written is too large.
        """
        self.require_write(now)
        own = self._chain(self._identity.peer_id)
        if own.stuck or own.forked:
            raise DocumentError(f"this peer's writes to {self.name!r} contradict earlier ones")
        result: list[Link] = []
        try:
            with self.state.transaction():
                yield result
            body = self.state.take_written()
            if body is not None:
                result.append(self._seal(body, now))
        except BaseException:
            self._rebuild()
            raise

    def _seal(self, body: bytes, now: float) -> Link:
        if len(body) > self._config.max_update:
            raise DocumentError(
                f"{len(body)} bytes in one transaction, at most {self._config.max_update} "
                "are allowed; put large values into blocks"
            )
        facts = read_update(body)
        chain = self._chain(self._identity.peer_id)
        membership = None if self._shown == self._membership else self._membership
        update = Update(
            self.mesh,
            self.name,
            chain.head + 1,
            chain.head_hash,
            max(now, chain.written),
            body,
            membership,
        )
        envelope = Signed.seal(self._identity, DOMAIN, update)
        self._require_room(chain, envelope)
        ground = chain.check(update, membership, self._scope)
        self.state.wrote(facts)
        return self._append(chain, envelope, update, ground)

    # -------------------------------------------------------------------- others' writes

    def receive(self, envelope: Signed) -> list[Link] | None:
        """Take an envelope in: what was accepted by it, or None if it waits for another.

        Raises:
            RefusedError: it is not taken in, now or ever; counted.
        """
        try:
            return self._receive(envelope)
        except RefusedError as refusal:
            self.counters[f"refused:{refusal.reason}"] += 1
            raise

    def _receive(self, envelope: Signed) -> list[Link] | None:
        digest = envelope_hash(envelope)
        if digest in self._known:
            self.counters["known"] += 1
            return []
        if self.state.writing:
            # Mixing it in would make it part of our own transaction. It will come again.
            self.counters["dropped:writing"] += 1
            return None
        update = self._open(envelope)
        if update.sequence > 1 and envelope.author not in self.chains:
            # Nothing says yet that this author may write: no memory for it.
            self.counters["dropped:gap"] += 1
            return None
        chain = self._chain(envelope.author)
        if update.sequence > chain.head + 1:
            self._wait(chain, envelope, update)
            return None
        accepted = self._take(chain, envelope, update)
        if accepted is None:
            self._wait(chain, envelope, update)
            return None
        return [accepted, *self._drain()]

    def _open(self, envelope: Signed) -> Update:
        if len(envelope.payload) > self._config.max_update + OVERHEAD:
            raise RefusedError("oversized", f"an envelope of {len(envelope.payload)} bytes")
        try:
            update = envelope.open(DOMAIN, Update)
        except SignatureError as error:
            raise RefusedError("forged", str(error)) from None
        if update.mesh != self.mesh or update.document != self.name:
            raise RefusedError("foreign", f"an update of {update.document!r}, not {self.name!r}")
        return update

    def _take(self, chain: Chain, envelope: Signed, update: Update) -> Link | None:
        """Accept an envelope that is not ahead of its chain; None if something else comes first."""
        if update.sequence <= chain.head:
            raise self._fork(chain, chain.links[update.sequence - 1].envelope, envelope)
        if chain.stuck:
            raise RefusedError("stuck", chain.stuck)
        if update.previous != chain.head_hash and chain.links:
            raise self._fork(chain, chain.links[-1].envelope, envelope)
        try:
            ground, facts = self._judge(chain, update)
        except RefusedError as refusal:
            raise self._stuck(chain, refusal) from None
        if not self.state.has(facts.needs):
            return None
        self._require_room(chain, envelope)
        try:
            self.state.apply(update.body, facts)
        except DocumentError as error:
            self._rebuild()
            raise self._stuck(chain, RefusedError("malformed", str(error))) from None
        return self._append(chain, envelope, update, ground)

    def _judge(self, chain: Chain, update: Update) -> tuple[Standing, UpdateFacts]:
        """Whether the next envelope of a chain is sound: every peer must find the same."""
        if update.previous != chain.head_hash:
            raise RefusedError("malformed", "the first envelope follows another")
        ground = chain.check(update, update.membership, self._scope)
        try:
            facts = read_update(update.body)
        except DocumentError as error:
            raise RefusedError("malformed", str(error)) from None
        if facts.client is not None:
            if facts.client != chain.client:
                raise RefusedError("client", "the update writes in another author's name")
            if facts.start != self.state.clocks.get(chain.client, 0):
                raise RefusedError("malformed", "the update's clock does not follow the last one")
            if self._clients.get(chain.client, chain.author) != chain.author:
                raise RefusedError("client", "another author has the same client id")
        return ground, facts

    def _wait(self, chain: Chain, envelope: Signed, update: Update) -> None:
        """Keep an envelope until what it follows is here, within bounds."""
        if chain.stuck:
            raise RefusedError("stuck", chain.stuck)
        if update.sequence in chain.waiting:
            return
        size = len(envelope.payload)
        if (
            self._waiting >= self._config.max_waiting
            or self._waiting_size + size > self._config.max_waiting_bytes
        ):
            self.counters["dropped:waiting_full"] += 1
            return
        chain.waiting[update.sequence] = envelope
        self._waiting += 1
        self._waiting_size += size
        self.counters["waited"] += 1

    def _drain(self) -> list[Link]:
        """Accept what waited for what has come."""
        accepted: list[Link] = []
        progress = True
        while progress and self._waiting:
            progress = False
            for chain in tuple(self.chains.values()):
                while (envelope := chain.waiting.get(chain.head + 1)) is not None:
                    try:
                        link = self._take(chain, envelope, self._open(envelope))
                    except RefusedError as refusal:
                        self.counters[f"refused:{refusal.reason}"] += 1
                        self._forget_waiting(chain, chain.head + 1)
                        break
                    if link is None:
                        break
                    accepted.append(link)
                    progress = True
                    self._forget_waiting(chain, chain.head)
        return accepted

    # ----------------------------------------------------------------------- exchange

    def heads(self) -> tuple[Head, ...]:
        """How far each author's chain goes here."""
        return tuple(chain.as_head() for chain in self.chains.values() if chain.links)

    def find(self, envelope: Signed) -> Link | None:
        """The accepted envelope that says the same, if any."""
        return self._known.get(envelope_hash(envelope))

    def missing(
        self,
        theirs: Iterable[Head],
        *,
        limit: int,
        committed: Mapping[PeerId, int] | None = None,
    ) -> Batch:
        """What a peer with the heads `theirs` lacks, at most about `limit` bytes of it.

        `committed` caps what may leave: the sequence numbers that are safe on disk.
        """
        heads = {head.author: head for head in theirs}
        suffixes = []
        for chain in self.chains.values():
            stop = chain.head if committed is None else committed.get(chain.author, 0)
            head = heads.get(chain.author)
            start = head.sequence if head is not None else 0
            if start < stop and (not head or chain.links[start - 1].hash == head.hash):
                suffixes.append(chain.links[start:stop])
        envelopes: list[Signed] = []
        last: dict[PeerId, Head] = {}
        size = 0
        for link in heapq.merge(*suffixes):
            if size >= limit or len(envelopes) >= MAX_BATCH:
                return Batch(tuple(envelopes), tuple(last.values()), False)
            envelopes.append(link.envelope)
            size += len(link.envelope.payload)
            last[link.envelope.author] = Head(link.envelope.author, link.sequence, link.hash)
        return Batch(tuple(envelopes), tuple(last.values()), True)

    def contradictions(self, theirs: Iterable[Head]) -> tuple[Signed, ...]:
        """Our envelopes where a peer holds others: to show it that their authors forked."""
        found = []
        for head in theirs:
            chain = self.chains.get(head.author)
            if chain is None or chain.forked or head.sequence > chain.head:
                continue
            ours = chain.links[head.sequence - 1]
            if ours.hash != head.hash:
                found.append(ours.envelope)
        return tuple(found[:MAX_BATCH])

    def author_of(self, client: int) -> PeerId:
        """Whose client id that is, of an author whose updates are in."""
        return self._clients[client]

    # ---------------------------------------------------------------------- internals

    def _chain(self, author: PeerId) -> Chain:
        chain = self.chains.get(author)
        if chain is None:
            if len(self.chains) >= MAX_AUTHORS:
                raise RefusedError("full", f"{self.name!r} has {MAX_AUTHORS} authors already")
            chain = self.chains[author] = Chain(author)
        return chain

    def _append(self, chain: Chain, envelope: Signed, update: Update, ground: Standing) -> Link:
        link = chain.accept(len(self._accepted), envelope, update, ground)
        self._accepted.append(link)
        self._known[link.hash] = link
        self._clients[chain.client] = chain.author
        if envelope.author == self._identity.peer_id and update.membership is not None:
            self._shown = update.membership
        return link

    def _require_room(self, chain: Chain, envelope: Signed) -> None:
        if chain.size + len(envelope.payload) > self._config.max_author_log:
            raise RefusedError("full", f"{chain.author.short} has filled its part of {self.name!r}")

    def _fork(self, chain: Chain, accepted: Signed, other: Signed) -> RefusedError:
        if not chain.forked:
            chain.forked = True
            self.evidence.append(Evidence(accepted, other))
        return RefusedError("forked", f"{chain.author.short} signed two envelopes for one place")

    def _stuck(self, chain: Chain, refusal: RefusedError) -> RefusedError:
        chain.stuck = str(refusal)
        for sequence in tuple(chain.waiting):
            self._forget_waiting(chain, sequence)
        if not chain.links and chain.author != self._identity.peer_id:
            # Whoever was never allowed anything is not remembered.
            del self.chains[chain.author]
        return refusal

    def _forget_waiting(self, chain: Chain, sequence: int) -> None:
        envelope = chain.waiting.pop(sequence, None)
        if envelope is not None:
            self._waiting -= 1
            self._waiting_size -= len(envelope.payload)

    def _rebuild(self) -> None:
        bodies = (wire.decode(link.envelope.payload, Update).body for link in self._accepted)
        self.state.rebuild(bodies)
