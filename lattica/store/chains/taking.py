"""Taking envelopes in: which are accepted, which wait, which are refused, and why.

Every peer accepts the same envelopes of an author in the same order, whoever brings them:
the signature, the chain, the grants inside it and the notices are all that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from lattica.config import StoreConfig
from lattica.errors import DocumentError
from lattica.identity import wire
from lattica.identity.grants import Membership
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed
from lattica.store.chains.chain import Chain, ChainMark, Link
from lattica.store.chains.held import Held
from lattica.store.chains.messages import Notice, Update
from lattica.store.chains.notices import Verdict
from lattica.store.chains.reading import Incoming, Reader
from lattica.store.chains.refusals import RefusedError
from lattica.store.crdt.quick import read_quick, read_replacing
from lattica.store.crdt.update import read_update

_MISFIT = ("malformed", "stuck")  # reasons that may be gone when a fork is found

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


class Taking(Held):
    """What a replica does with envelopes that come in."""

    def __init__(
        self, name: str, identity: Identity, membership: Membership, config: StoreConfig
    ) -> None:
        super().__init__(name, identity, membership, config)
        self._reader = Reader(self.mesh, name, config.max_update)
        self._proofs: list[Notice] = []  # of forks that this batch has shown
        self._before: dict[int, ChainMark] = {}  # where chains stood before this batch

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
        misfits: list[tuple[Incoming, RefusedError]] = []
        unfit: dict[PeerId, tuple[int, RefusedError]] = {}  # from which number on
        self._before.clear()
        for incoming in self._reader.read(envelopes, self._known, refuse):
            author, number = incoming.envelope.author, incoming.update.sequence
            if unfit and author in unfit and number > unfit[author][0]:
                misfits.append((incoming, RefusedError("stuck", str(unfit[author][1]))))
                continue
            try:
                waiting += not self._arrived(incoming, taken)
            except RefusedError as refusal:
                if refusal.reason in _MISFIT:
                    unfit.setdefault(author, (number, refusal))
                    misfits.append((incoming, refusal))
                else:
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
            waiting += self._try_again(misfits, taken, refuse)
            self._settle(taken, refuse)
        else:
            for incoming, why in misfits:
                refuse(incoming.envelope, why)
        return taken._replace(waiting=waiting)

    def _try_again(
        self, misfits: Iterable[tuple[Incoming, RefusedError]], taken: Taken, refuse: Refuse
    ) -> int:
        """Take in what may only not have fitted a branch that is cut now; how many wait."""
        waiting = 0
        for incoming, refusal in misfits:
            try:
                waiting += not self._arrived(incoming, taken)
            except RefusedError:
                refuse(incoming.envelope, refusal)
        return waiting

    def _arrived(self, incoming: Incoming, taken: Taken) -> bool:
        """Accept an envelope, or keep it until what it follows is here; False if it waits."""
        author, update = incoming.envelope.author, incoming.update
        chain = self._by_key.get(author.raw)
        if (
            chain is not None
            and update.previous == chain.head_hash
            and update.sequence == chain.head + 1
            and chain.upto is None
            and not chain.stuck
        ):
            if self._take_replacing(chain, incoming, taken):
                return True
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

    def _take_replacing(self, chain: Chain, incoming: Incoming, taken: Taken) -> bool:
        """Do what `_take_next` would for the commonest update; False: nothing was done.

        That is one entry of a map in the place of another, which it deletes.
        """
        step, envelope, client = incoming.update, incoming.envelope, chain.client
        body, written = step.body, step.written
        if step.membership is not None or not chain.goes_on(written, self._scope):
            return False
        if (found := read_replacing(body)) is None or found[0] != client:
            return False
        owner = self._clients.get(client)
        if (
            (owner is not chain.author and owner != chain.author)
            or chain.waiting
            or chain.size + len(envelope.payload) > self._config.max_author_log
        ):
            return False
        if client not in self._before:
            self._before[client] = chain.mark()
        if not self.state.replace(body, found, step.stated):
            return False
        digest = incoming.hash
        link = Link(
            next(self._positions), step.sequence, envelope, digest, written, incoming.is_proven
        )
        chain.extend(link)
        self._accepted.append(link)
        self._known[digest] = link
        taken.links.append(link)
        return True

    def _take_next(self, chain: Chain, incoming: Incoming, taken: Taken) -> bool:
        """Accept the next envelope of a chain; False if something else comes first.

        Everything here is done for every update that there is, and so it is done with few calls.
        """
        update = incoming.update
        state, client = self.state, chain.client
        try:
            # Every peer must find the same, so nothing but the chain and the content counts.
            chain.check(update, update.membership, self.mesh, self._scope)
            facts = read_quick(update.body) or read_update(update.body)
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
            state.admit(update.body, facts, update.stated)
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
            del self.chains[chain.author], self._by_key[chain.author.raw]
        return refusal
