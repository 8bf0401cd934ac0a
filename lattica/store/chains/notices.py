"""Notices: forks that an author is convicted of, and the authority's rulings on authors.

Both cut an author's chain: of what it wrote, the updates up to a number count, the rest
counts nowhere. Every peer that knows the same notices cuts at the same place, whichever
branch it saw first, for of several cuts the lowest holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from lattica.errors import GrantError, SignatureError
from lattica.identity import grants, wire
from lattica.identity.grants import Membership
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed
from lattica.store.chains.chain import standing
from lattica.store.chains.messages import (
    DOMAIN,
    MAX_AUTHORS,
    MAX_NOTICES,
    RULING,
    Mark,
    Notice,
    Ruling,
    Update,
    envelope_hash,
)
from lattica.store.chains.refusals import RefusedError

UNCUT = 2**53
MAX_TOLD = 1 << 20  # bytes of notices in one message, beside the last one


class Verdict(NamedTuple):
    """What a notice says, once it is checked."""

    author: PeerId
    upto: int | None  # the last update that counts; None: it cuts nothing
    membership: Membership | None  # granted by the authority
    notice: Notice

    @property
    def reason(self) -> str:
        """Why what comes after is refused: `forked` or `revoked`."""
        return "forked" if self.notice.other else "revoked"


class Notices:
    """The notices of one document that count."""

    def __init__(self, mesh: PeerId, document: str) -> None:
        self._mesh = mesh
        self._document = document
        self._cuts: dict[PeerId, Verdict] = {}
        self._grants: dict[PeerId, tuple[float, Verdict]] = {}

    def add(self, notice: Notice) -> Verdict | None:
        """Take a notice in; None if it says nothing new.

        Raises:
            RefusedError: it proves nothing, or is about another document or a stranger.
        """
        verdict = self._read(notice)
        news = False
        if verdict.upto is not None:
            before = self._cuts.get(verdict.author)
            if before is None or verdict.upto < (before.upto or 0):
                self._require_room(self._cuts, verdict.author)
                self._cuts[verdict.author] = verdict
                news = True
        if verdict.membership is not None:
            until = standing(verdict.membership, verdict.author).expires
            granted = self._grants.get(verdict.author)
            if granted is None or granted[0] < until:
                self._require_room(self._grants, verdict.author)
                self._grants[verdict.author] = until, verdict
                news = True
        return verdict if news else None

    def require(self, notice: Notice) -> None:
        """Check that a notice would be taken in.

        Raises:
            RefusedError: see `add`.
        """
        self._read(notice)

    def cut(self, author: PeerId) -> Verdict | None:
        """What ends the author's chain, if anything does."""
        return self._cuts.get(author)

    def granted(self, author: PeerId) -> Membership | None:
        """What the authority has granted in this document."""
        held = self._grants.get(author)
        return held[1].membership if held is not None else None

    def forks(self) -> list[Notice]:
        """The proofs that authors have forked."""
        return [verdict.notice for verdict in self._cuts.values() if verdict.notice.other]

    def about(self, authors: Collection[PeerId]) -> tuple[Notice, ...]:
        """What cuts these authors' chains."""
        found = [self._cuts[author].notice for author in authors if author in self._cuts]
        return tuple(found[:MAX_NOTICES])

    def marks(self) -> tuple[Mark, ...]:
        """What is known here, for a peer that may know less."""
        return tuple(self._mark(author) for author in {**self._cuts, **self._grants})

    def lacking(self, theirs: Iterable[Mark]) -> tuple[Notice, ...]:
        """The notices that a peer with the marks `theirs` does not know, as many as fit."""
        known = {mark.author: mark for mark in theirs}
        found: list[Notice] = []
        size = 0
        for author in {**self._cuts, **self._grants}:
            if size > MAX_TOLD or len(found) >= MAX_NOTICES - 1:
                break  # the next exchange brings more
            mark = known.get(author, Mark(author, UNCUT, 0.0))
            ours = self._mark(author)
            if ours.upto < mark.upto:
                notice = self._cuts[author].notice
                found.append(notice)
                size += sum(len(each.payload) for each in (*notice.one, *notice.other))
            if ours.granted > mark.granted:
                found.append(self._grants[author][1].notice)
        return tuple(found)

    def __iter__(self) -> Iterator[Notice]:
        for verdict in self._cuts.values():
            yield verdict.notice
        for _, verdict in self._grants.values():
            yield verdict.notice

    def _mark(self, author: PeerId) -> Mark:
        cut, granted = self._cuts.get(author), self._grants.get(author)
        upto = UNCUT if cut is None or cut.upto is None else cut.upto
        return Mark(author, upto, granted[0] if granted is not None else 0.0)

    def _require_room(self, known: Mapping[PeerId, object], author: PeerId) -> None:
        if author not in known and len(known) >= MAX_AUTHORS:
            raise RefusedError("full", f"there are notices about {MAX_AUTHORS} authors already")

    def _read(self, notice: Notice) -> Verdict:
        if not notice.one:
            raise RefusedError("malformed", "a notice that says nothing")
        return self._fork(notice) if notice.other else self._ruling(notice)

    def _ruling(self, notice: Notice) -> Verdict:
        if len(notice.one) != 1:
            raise RefusedError("malformed", "a notice has one ruling")
        try:
            ruling = notice.one[0].open(RULING, Ruling)
        except SignatureError as error:
            raise RefusedError("forged", str(error)) from None
        if ruling.mesh != self._mesh or ruling.document != self._document:
            raise RefusedError("foreign", f"a ruling on {ruling.document!r}")
        if notice.one[0].author != self._mesh:
            raise RefusedError("unauthorised", "only the mesh's authority rules")
        if (ruling.upto is None) == (ruling.membership is None):
            raise RefusedError("malformed", "a ruling either grants or revokes")
        if ruling.subject == self._mesh and ruling.upto is not None:
            raise RefusedError("malformed", "the authority cannot revoke itself")
        if ruling.membership is not None:
            self._require_writer(ruling.membership, ruling.subject)
        return Verdict(ruling.subject, ruling.upto, ruling.membership, notice)

    def _fork(self, notice: Notice) -> Verdict:
        author = notice.one[0].author
        if notice.membership is None:
            raise RefusedError("unauthorised", "nothing shows that the author may write")
        self._require_writer(notice.membership, author)
        one, other = self._first(notice.one, author), self._first(notice.other, author)
        hashes = envelope_hash(notice.one[0]), envelope_hash(notice.other[0])
        same_place = one.sequence == other.sequence and hashes[0] != hashes[1]
        not_after = other.sequence == one.sequence + 1 and other.previous != hashes[0]
        if not (same_place or not_after):
            raise RefusedError("malformed", "these envelopes do not contradict each other")
        return Verdict(author, coarse(one.sequence - 1), None, notice)

    def _first(self, segment: tuple[Signed, ...], author: PeerId) -> Update:
        """The first update of a stretch whose last signature stands for all of it."""
        try:
            last = segment[-1].open(DOMAIN, Update)
            updates = [wire.decode(envelope.payload, Update) for envelope in segment[:-1]]
        except (SignatureError, msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise RefusedError("forged", str(error)) from None
        updates.append(last)
        for index, update in enumerate(updates):
            envelope = segment[index]
            if envelope.author != author or envelope.domain != DOMAIN:
                raise RefusedError("malformed", "a proof is about one author")
            if update.mesh != self._mesh or update.document != self._document:
                raise RefusedError("foreign", f"an update of {update.document!r}")
            if index and update.previous != envelope_hash(segment[index - 1]):
                raise RefusedError("malformed", "a stretch of a proof has a gap")
        return updates[0]

    def _require_writer(self, membership: Membership, author: PeerId) -> None:
        scope = grants.WRITE + self._document
        try:
            if membership.mesh != self._mesh:
                raise GrantError("the grants are of another mesh")
            if grants.allows(standing(membership, author).scopes, scope):
                return
        except GrantError as error:
            raise RefusedError("unauthorised", str(error)) from None
        raise RefusedError("unauthorised", f"{author.short} never held a grant {scope!r}")


def coarse(upto: int) -> int:
    """`upto` with all but its four leading binary digits zero.

    Whoever has forked can show ever earlier forks, and each cut makes all peers read the
    document anew. So cuts of one author fall on few places: eight for each doubling.
    """
    shift = max(0, upto.bit_length() - 4)
    return upto >> shift << shift


def rule(
    authority: Identity,
    document: str,
    subject: PeerId,
    *,
    upto: int | None = None,
    membership: Membership | None = None,
) -> Notice:
    """A ruling by the mesh's authority: see `Ruling`."""
    ruling = Ruling(authority.peer_id, document, subject, upto, membership)
    return Notice((Signed.seal(authority, RULING, ruling),))
