"""One peer's copy of a document, sans I/O: envelopes go in, content and envelopes come out.

Every peer accepts the same envelopes of an author in the same order, whoever brings them:
the signature, the chain, the grants inside it and the notices are all that counts.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from lattica.config import StoreConfig
from lattica.errors import DocumentError, GrantError
from lattica.identity import grants, wire
from lattica.identity.grants import Membership
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed
from lattica.store.chain import Chain, ChainMark, Link, standing
from lattica.store.messages import (
    DOMAIN,
    MAX_AUTHORS,
    Head,
    Mark,
    Notice,
    Update,
    envelope_hash,
)
from lattica.store.notices import Notices, Verdict
from lattica.store.quick import read_body
from lattica.store.reading import Incoming, Reader
from lattica.store.refusals import RefusedError
from lattica.store.sending import Batch, contradictions, missing
from lattica.store.state import State, client_id

Refuse = Callable[[Signed, RefusedError], None]


class Refusal(NamedTuple):
    """An envelope that is not taken in, and why."""

    envelope: Signed
    error: RefusedError


class Taken(NamedTuple):
    """What became of envelopes that came in."""

    links: list[Link]  # accepted, in order
    refusals: list[Refusal]
    archived: list[Incoming]  # in a place where this peer holds one on disk only: to compare
    verdicts: list[Verdict]  # what was learned about authors
    waiting: int  # envelopes that wait for others


class Snapshot(NamedTuple):
    """A replica without its history."""

    chains: tuple[ChainMark, ...]
    content: bytes  # see `State.snapshot`


class Replica:
    """A document's content, its authors' chains, and the rules for taking more in."""

    def __init__(
        self, name: str, identity: Identity, membership: Membership, config: StoreConfig
    ) -> None:
        self.name = name
        self.mesh = membership.mesh
        self.counters: Counter[str] = Counter()
        self.notices = Notices(self.mesh, name)
        self.state = State(client_id(identity.peer_id))
        self.chains: dict[PeerId, Chain] = {}
        self.is_stale = False  # a notice cuts what is on disk only: to be read again from there
        self._identity = identity
        self._membership = membership
        self._config = config
        self._scope = grants.WRITE + name
        self._reader = Reader(self.mesh, name, config.max_update)
        self._known: dict[bytes, Link] = {}
        self._clients: dict[int, PeerId] = {}
        self._accepted: list[Link] = []  # those that are not on disk only
        self._positions = itertools.count()
        self._snapshot: Snapshot | None = None  # what `_accepted` goes on from
        self._proofs: list[Notice] = []  # of forks that this batch has shown
        self._before: dict[int, ChainMark] = {}  # where chains stood before this batch
        self._waiting = 0  # envelopes
        self._waiting_size = 0  # bytes
        self._shown: Membership | None = None  # the membership that our own chain holds

    # ------------------------------------------------------------------ our own writes

    @property
    def membership(self) -> Membership:
        """What allows this peer to write: its ticket, or a ruling in the document."""
        ground = standing(self._membership, self._identity.peer_id)
        granted = self.notices.granted(self._identity.peer_id)
        if granted is None or grants.allows(ground.scopes, self._scope):
            return self._membership
        return granted

    def require_write(self, now: float) -> None:
        """Check that this peer may write.

        Raises:
            GrantError: it holds no `write:<document>` grant, or the grant has expired.
        """
        ground = standing(self.membership, self._identity.peer_id)
        if not grants.allows(ground.scopes, self._scope):
            raise GrantError(
                f"this peer's ticket does not grant {self._scope!r}; "
                "ask the mesh's authority for a ticket that does, or for a grant in the document"
            )
        if ground.expires <= now:
            raise GrantError(f"this peer's grant {self._scope!r} has expired; join again")
        cut = self.notices.cut(self._identity.peer_id)
        if cut is not None and cut.reason == "revoked":
            raise GrantError(f"this peer's grant {self._scope!r} was revoked")

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
        if own.stuck or own.upto is not None:
            raise DocumentError(
                f"this peer's writes to {self.name!r} contradict earlier ones, which all peers "
                "have been shown; to write again, join with a new identity"
            )
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
        facts = read_body(body)
        chain = self._chain(self._identity.peer_id)
        membership = None if self._shown == self.membership else self.membership
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
        chain.check(update, membership, self._scope)
        self.state.wrote(facts)
        return self._append(chain, Incoming(envelope, envelope_hash(envelope), update, True))

    # -------------------------------------------------------------------- others' writes

    def receive(self, envelopes: Iterable[Signed]) -> Taken:
        """Take envelopes in, as many as may be, in one transaction of the content."""
        taken = Taken([], [], [], [], 0)
        if self.state.writing:
            # Mixing them in would make them part of our own transaction. They will come again.
            dropped = sum(1 for _ in envelopes)
            self.counters["dropped:writing"] += dropped
            return taken._replace(waiting=dropped)

        def refuse(envelope: Signed, error: RefusedError) -> None:
            self.counters[f"refused:{error.reason}"] += 1
            taken.refusals.append(Refusal(envelope, error))

        waiting = 0
        self._before.clear()
        for incoming in self._reader.read(envelopes, self._known, refuse):
            try:
                waiting += not self._arrived(incoming, taken)
            except RefusedError as refusal:
                refuse(incoming.envelope, refusal)
        if self._reader.repeats:
            self.counters["known"] += self._reader.repeats
        self._settle(taken, refuse)
        if self._proofs:
            # Only now: what was accepted is in the content, and a cut may take it out again.
            proofs, self._proofs = self._proofs, []
            taken.verdicts.extend(self.learn(proofs))
            taken.links[:] = [link for link in taken.links if link.hash in self._known]
            self._before.clear()
            self._settle(taken, refuse)
        return taken._replace(waiting=waiting)

    def _arrived(self, incoming: Incoming, taken: Taken) -> bool:
        """Accept an envelope, or keep it until what it follows is here; False if it waits."""
        author, update = incoming.envelope.author, incoming.update
        chain = self.chains.get(author)
        if (
            chain is not None
            and update.previous == chain.head_hash
            and update.sequence == chain.head + 1
            and chain.upto is None
            and not chain.stuck
        ):
            if self._take_next(chain, incoming, taken):
                return True
            self._wait(chain, incoming)
            return False
        if chain is None:
            if update.sequence > 1:
                # Nothing says yet that this author may write: no memory for it.
                self.counters["dropped:gap"] += 1
                return False
            chain = self._chain(author)
        if update.sequence <= chain.head + 1:
            if incoming.hash in self._known:
                return True  # twice in one batch
            if self._take(chain, incoming, taken):
                return True
        self._wait(chain, incoming)
        return False

    def _take(self, chain: Chain, incoming: Incoming, taken: Taken) -> bool:
        """Accept an envelope not ahead of its chain; False if something else comes first."""
        update = incoming.update
        if chain.upto is not None and update.sequence > chain.upto:
            raise self._beyond(chain)
        if update.sequence <= chain.base:
            taken.archived.append(incoming)
            return True
        if update.sequence <= chain.head:
            raise self._fork(chain, chain.at(update.sequence), incoming)
        if chain.stuck:
            raise RefusedError("stuck", chain.stuck)
        if update.previous != chain.head_hash and chain.head:
            if not chain.links:
                taken.archived.append(incoming)
                return True
            raise self._fork(chain, chain.links[-1], incoming)
        if update.previous != chain.head_hash:
            refusal = RefusedError("malformed", "the first envelope follows another")
            raise self._stuck(chain, refusal)
        return self._take_next(chain, incoming, taken)

    def _take_next(self, chain: Chain, incoming: Incoming, taken: Taken) -> bool:
        """Accept the next envelope of a chain; False if something else comes first.

        Everything here is done for every update that there is, and so it is done with few calls.
        """
        update = incoming.update
        state, client = self.state, chain.client
        try:
            # Every peer must find the same, so nothing but the chain and the content counts.
            chain.check(update, update.membership, self._scope)
            facts = read_body(update.body)
            if facts.client is not None:
                if facts.client != client:
                    raise RefusedError("client", "the update writes in another author's name")
                if facts.start != state.clocks.get(client, 0):
                    raise RefusedError("malformed", "the update does not follow the last one")
                owner = self._clients.get(client)
                if owner is not None and owner is not chain.author and owner != chain.author:
                    raise RefusedError("client", "another author has the same client id")
            if facts.needs and not state.has(facts.needs):
                return False
            if chain.size + len(incoming.envelope.payload) > self._config.max_author_log:
                self._require_room(chain, incoming.envelope)
            if client not in self._before:
                self._before[client] = chain.mark()
            state.admit(update.body, facts)
        except RefusedError as refusal:
            if refusal.reason == "full":
                raise
            raise self._stuck(chain, refusal) from None
        except DocumentError as error:
            raise self._stuck(chain, RefusedError("malformed", str(error))) from None
        taken.links.append(self._append(chain, incoming))
        if chain.waiting:
            self._compare_waiting(chain, incoming)
        return True

    def _compare_waiting(self, chain: Chain, accepted: Incoming) -> None:
        """What waits for the place that was just taken is the same, or a fork."""
        sequence = accepted.update.sequence
        other = chain.waiting.get(sequence)
        self._forget_waiting(chain, sequence)
        if other is not None and other.hash != accepted.hash:
            self._fork(chain, chain.at(sequence), other)

    def _wait(self, chain: Chain, incoming: Incoming) -> None:
        """Keep an envelope until what it follows is here, within bounds."""
        sequence = incoming.update.sequence
        if chain.upto is not None and sequence > chain.upto:
            raise self._beyond(chain)
        if chain.stuck:
            raise RefusedError("stuck", chain.stuck)
        if sequence in chain.waiting:
            return
        size = len(incoming.envelope.payload)
        if (
            self._waiting >= self._config.max_waiting
            or self._waiting_size + size > self._config.max_waiting_bytes
        ):
            self.counters["dropped:waiting_full"] += 1
            return
        chain.waiting[sequence] = incoming
        self._waiting += 1
        self._waiting_size += size
        self.counters["waited"] += 1

    def _settle(self, taken: Taken, refuse: Refuse) -> None:
        """Accept what need not wait any more, and let the content have it all."""
        if self._waiting:
            self._drain(taken, refuse)
        self._apply(taken, refuse)

    def _drain(self, taken: Taken, refuse: Refuse) -> None:
        """Accept what waited for what has come."""
        progress = True
        while progress and self._waiting:
            progress = False
            for chain in tuple(self.chains.values()):
                while (incoming := chain.waiting.get(chain.head + 1)) is not None:
                    try:
                        is_in = self._take(chain, incoming, taken)
                    except RefusedError as refusal:
                        refuse(incoming.envelope, refusal)
                        self._forget_waiting(chain, incoming.update.sequence)
                        break
                    if not is_in:
                        break
                    progress = True
                    self._forget_waiting(chain, incoming.update.sequence)

    def _apply(self, taken: Taken, refuse: Refuse) -> None:
        """Let the content have what was accepted in this batch."""
        try:
            self.state.settle()
        except DocumentError:
            self._apply_singly(taken, refuse)

    def _apply_singly(self, taken: Taken, refuse: Refuse) -> None:
        """pycrdt refuses something in a batch: find out what, and go on without its author."""
        links, accepted = list(taken.links), {link.hash for link in taken.links}
        taken.links.clear()
        for link in links:
            self._known.pop(link.hash, None)
        self._accepted = [link for link in self._accepted if link.hash not in accepted]
        for mark in self._before.values():
            self.chains[mark.author].restore(mark)
        self._before.clear()
        self._rebuild()
        for link in links:
            chain = self.chains[link.envelope.author]
            update = wire.decode(link.envelope.payload, Update)
            again = Incoming(link.envelope, link.hash, update, link.is_proven, True)
            try:
                if not self._take(chain, again, taken):
                    self._wait(chain, again)
                    continue
                self.state.settle()
            except RefusedError as refusal:
                refuse(link.envelope, refusal)
            except DocumentError as error:
                bad = taken.links.pop()
                self._known.pop(bad.hash, None)
                self._accepted.pop()
                chain.links.pop()
                chain.size -= len(bad.envelope.payload)
                self._rebuild()
                refuse(link.envelope, self._stuck(chain, RefusedError("malformed", str(error))))

    # ----------------------------------------------------------------------- notices

    def learn(self, notices: Iterable[Notice]) -> list[Verdict]:
        """Take notices in; what was new. Those that prove nothing are counted.

        `receive` is due then: what waited may not need to any more.
        """
        found, is_due = [], False
        for notice in notices:
            try:
                verdict = self.notices.add(notice)
                if verdict is not None:
                    found.append(verdict)
                    if verdict.upto is not None:
                        is_due |= self._cut(self._chain(verdict.author), verdict.upto)
            except RefusedError as refusal:
                self.counters[f"refused:{refusal.reason}"] += 1
        if is_due:
            self._rebuild()
        return found

    def contradicted(self, envelope: Signed, incoming: Incoming) -> list[Verdict]:
        """An archived envelope differs from one that came: both are the proof of a fork."""
        chain = self._chain(incoming.envelope.author)
        proof = Notice((envelope,), incoming.stretch(), chain.membership)
        return self.learn((proof,))

    def _cut(self, chain: Chain, upto: int) -> bool:
        """Take out what does not count any more; whether `_rebuild` is due."""
        if upto < chain.base:
            self.is_stale = True
        taken = chain.cut(upto)
        for sequence in [sequence for sequence in chain.waiting if sequence > upto]:
            self._forget_waiting(chain, sequence)
        self._close(chain)
        if not taken:
            return False
        gone = {link.hash for link in taken}
        for digest in gone:
            self._known.pop(digest, None)
        self._accepted = [link for link in self._accepted if link.hash not in gone]
        for other in self.chains.values():
            if other is not chain:
                other.stuck = ""  # it may have rested on what is gone
        return True

    def _close(self, chain: Chain) -> None:
        if chain.is_closed:
            self.state.closed.add(chain.client)

    def _beyond(self, chain: Chain) -> RefusedError:
        cut = self.notices.cut(chain.author)
        reason = cut.reason if cut is not None else "revoked"
        what = "has signed two updates for one place" if reason == "forked" else "was revoked"
        return RefusedError(reason, f"{chain.author.short} {what}; nothing after it counts")

    # ----------------------------------------------------------------------- exchange

    def heads(self) -> tuple[Head, ...]:
        """How far each author's chain goes here."""
        return tuple(chain.as_head() for chain in self.chains.values() if chain.head)

    def find(self, envelope: Signed) -> Link | None:
        """The accepted envelope that says the same, if any."""
        return self._known.get(envelope_hash(envelope))

    def missing(
        self,
        theirs: Iterable[Head],
        *,
        limit: int,
        committed: Mapping[PeerId, int] | None = None,
    ) -> Batch | None:
        """What a peer with the heads `theirs` lacks: see `sending.missing`."""
        return missing(self.chains.values(), theirs, limit=limit, committed=committed)

    def contradictions(self, theirs: Iterable[Head]) -> tuple[Signed, ...]:
        """Our envelopes where a peer holds others: to show it that their authors forked."""
        return contradictions(self.chains, theirs)

    def lacking(self, theirs: Iterable[Mark]) -> tuple[Notice, ...]:
        """Notices that a peer does not know."""
        return self.notices.lacking(theirs)

    # ---------------------------------------------------------------------- snapshots

    def take_snapshot(self) -> Snapshot:
        """The replica without its history; `archive` is due when it is on disk."""
        clocks = self.state.clocks
        chains = tuple(
            chain.mark() for chain in self.chains.values() if chain.head or chain.client in clocks
        )
        return Snapshot(chains, self.state.snapshot())

    def archive(self, snapshot: Snapshot) -> None:
        """Forget the history that a snapshot covers; it is on disk."""
        for mark in snapshot.chains:
            chain = self.chains[mark.author]
            if chain.upto is not None and mark.sequence > chain.upto:
                return  # a notice came in between: it covers what does not count any more
        for mark in snapshot.chains:
            for link in self.chains[mark.author].archive(mark):
                self._known.pop(link.hash, None)
        self._accepted = [link for link in self._accepted if link.hash in self._known]
        self._snapshot = snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """Start from a snapshot instead of from nothing.

        Raises:
            DocumentError: pycrdt refuses its content.
        """
        for mark in snapshot.chains:
            chain = self._chain(mark.author)
            chain.restore(mark)
            self._clients[chain.client] = mark.author
            self._close(chain)
            if mark.author == self._identity.peer_id:
                self._shown = mark.membership
        self._snapshot = snapshot
        self._rebuild()

    def recent(self) -> tuple[Link, ...]:
        """The accepted envelopes in memory, in order."""
        return tuple(self._accepted)

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
            cut = self.notices.cut(author)
            if cut is not None and cut.upto is not None:
                chain.upto = cut.upto
                self._close(chain)
        return chain

    def _append(self, chain: Chain, incoming: Incoming) -> Link:
        link = chain.accept(next(self._positions), incoming)
        self._accepted.append(link)
        self._known[link.hash] = link
        if chain.client not in self._clients:
            self._clients[chain.client] = chain.author
        shown = incoming.update.membership
        if shown is not None and chain.author == self._identity.peer_id:
            self._shown = shown
        if chain.upto is not None:
            self._close(chain)
        return link

    def _require_room(self, chain: Chain, envelope: Signed) -> None:
        if chain.size + len(envelope.payload) > self._config.max_author_log:
            raise RefusedError("full", f"{chain.author.short} has filled its part of {self.name!r}")

    def _fork(self, chain: Chain, accepted: Link | None, other: Incoming) -> RefusedError:
        assert accepted is not None
        membership = chain.membership or other.update.membership
        self._proofs.append(Notice(chain.stretch(accepted), other.stretch(), membership))
        return RefusedError("forked", f"{chain.author.short} signed two envelopes for one place")

    def _stuck(self, chain: Chain, refusal: RefusedError) -> RefusedError:
        chain.stuck = str(refusal)
        for sequence in tuple(chain.waiting):
            self._forget_waiting(chain, sequence)
        if not chain.head and chain.author != self._identity.peer_id:
            # Whoever was never allowed anything is not remembered.
            del self.chains[chain.author]
        return refusal

    def _forget_waiting(self, chain: Chain, sequence: int) -> None:
        incoming = chain.waiting.pop(sequence, None)
        if incoming is not None:
            self._waiting -= 1
            self._waiting_size -= len(incoming.envelope.payload)

    def _rebuild(self) -> None:
        """Make the content anew of what was accepted."""
        content = self._snapshot.content if self._snapshot is not None else None
        bodies = (wire.decode(link.envelope.payload, Update).body for link in self._accepted)
        self.state.rebuild(content, ((body, read_body(body)) for body in bodies))
