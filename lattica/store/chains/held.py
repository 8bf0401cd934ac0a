"""What a replica holds: chains of accepted envelopes, the content that they make, notices.

Here is what may be done with it whatever comes in next: accept the next envelope of a chain,
cut a chain, leave the history to the disk and come back from there.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from lattica.config import StoreConfig
from lattica.identity import grants, wire
from lattica.identity.grants import Membership
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed
from lattica.store.chains.chain import Chain, ChainMark, Link
from lattica.store.chains.messages import MAX_AUTHORS, Head, Notice, Update, envelope_hash
from lattica.store.chains.notices import Notices, Verdict
from lattica.store.chains.reading import Incoming
from lattica.store.chains.refusals import RefusedError
from lattica.store.crdt.state import State, client_id


class Snapshot(NamedTuple):
    """A replica without its history."""

    chains: tuple[ChainMark, ...]
    content: bytes  # see `State.snapshot`


class Held:
    """A document's chains, content and notices."""

    def __init__(
        self, name: str, identity: Identity, membership: Membership, config: StoreConfig
    ) -> None:
        self.name = name
        self.mesh = membership.mesh
        self.counters: Counter[str] = Counter()
        self.notices = Notices(self.mesh, name)
        self.state = State(client_id(identity.peer_id))
        self.chains: dict[PeerId, Chain] = {}
        self._by_key: dict[bytes, Chain] = {}  # the same by raw keys, which are found faster
        self.is_stale = False  # a notice cuts what is on disk only: to be read again from there
        self._identity = identity
        self._membership = membership
        self._config = config
        self._scope = grants.WRITE + name
        self._known: dict[bytes, Link] = {}
        self._clients: dict[int, PeerId] = {}
        self._accepted: list[Link] = []  # those that are not on disk only
        self._positions = itertools.count()
        self._snapshot: Snapshot | None = None  # what `_accepted` goes on from
        self._waiting = 0  # envelopes
        self._waiting_size = 0  # bytes
        self._shown: Membership | None = None  # the membership that our own chain holds

    def heads(self) -> tuple[Head, ...]:
        """How far each author's chain goes here."""
        return tuple(chain.as_head() for chain in self.chains.values() if chain.head)

    def find(self, envelope: Signed) -> Link | None:
        """The accepted envelope that says the same, if any."""
        return self._known.get(envelope_hash(envelope))

    @property
    def unarchived(self) -> int:
        """How many accepted envelopes are in memory."""
        return len(self._accepted)

    def recent(self) -> tuple[Link, ...]:
        """The accepted envelopes in memory, in order."""
        return tuple(self._accepted)

    def author_of(self, client: int) -> PeerId:
        """Whose client id that is, of an author whose updates are in."""
        return self._clients[client]

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

    def _chain(self, author: PeerId) -> Chain:
        chain = self.chains.get(author)
        if chain is None:
            if len(self.chains) >= MAX_AUTHORS:
                raise RefusedError("full", f"{self.name!r} has {MAX_AUTHORS} authors already")
            chain = self.chains[author] = self._by_key[author.raw] = Chain(author)
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

    def _forget_waiting(self, chain: Chain, sequence: int) -> None:
        incoming = chain.waiting.pop(sequence, None)
        if incoming is not None:
            self._waiting -= 1
            self._waiting_size -= len(incoming.envelope.payload)

    def _rebuild(self) -> None:
        """Make the content anew of what was accepted."""
        content = self._snapshot.content if self._snapshot is not None else None
        bodies = (wire.decode(link.envelope.payload, Update).body for link in self._accepted)
        self.state.rebuild(content, bodies)
