"""One author's chain of envelopes in one document, and what it proves."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import msgspec

from lattica.errors import GrantError
from lattica.identity import grants
from lattica.identity.grants import Membership
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed
from lattica.store.chains.messages import GENESIS, Head, Step, Update
from lattica.store.chains.reading import Incoming
from lattica.store.chains.refusals import RefusedError
from lattica.store.crdt.state import client_id


class Standing(NamedTuple):
    """What a membership allows, and until when."""

    scopes: frozenset[str]
    expires: float  # seconds since the Unix epoch


@functools.lru_cache(maxsize=1024)
def standing(membership: Membership, author: PeerId) -> Standing:
    """What `membership` ever allowed `author`, whatever the time is now.

    Raises:
        GrantError: the chain of grants is forged, of another mesh, or not the author's.
    """
    scopes = grants.verify_chain(
        membership.chain, mesh=membership.mesh, subject=author, now=-math.inf
    )
    steps = [step.open(grants.DOMAIN, grants.Grant) for step in membership.chain]
    return Standing(scopes, min((step.expires for step in steps), default=-math.inf))


class Link(msgspec.Struct, gc=False):
    """An accepted envelope."""

    position: int  # in the order of acceptance
    sequence: int
    envelope: Signed
    hash: bytes
    written: float  # seconds since the Unix epoch
    is_proven: bool  # its own signature was verified; else a later one of its chain was


class ChainMark(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a chain stands: what is needed to go on from there without what came before."""

    author: PeerId
    sequence: int
    hash: bytes
    written: float
    size: int  # bytes of all its envelopes
    membership: Membership | None
    stuck: str = ""


class Chain:
    """Accepted envelopes of one author, without a gap, and those that wait for one to fill.

    The envelopes up to `base` are on disk only. `head` is the sequence number of the last one,
    0 before the first, and `head_hash` what the next one must name as its previous one.
    """

    def __init__(self, author: PeerId) -> None:
        self.author = author
        self.client = client_id(author)
        self.base = 0
        self.head = 0
        self.head_hash = GENESIS
        self.links: list[Link] = []
        self.membership: Membership | None = None  # the last one shown
        self.written = -math.inf
        self.size = 0  # bytes
        self.stuck = ""  # why no more is taken; set by a refusal that every peer must repeat
        self.upto: int | None = None  # a notice lets nothing after this number count
        self.waiting: dict[int, Incoming] = {}  # by sequence number
        self._base_hash = GENESIS
        self._standing: Standing | None = None
        self._scope_held: str | None = None  # the last scope that the standing was found to hold

    @property
    def is_closed(self) -> bool:
        """Whether all that counts is here and a notice lets nothing follow."""
        return self.upto is not None and self.head >= self.upto

    def as_head(self) -> Head:
        """What others are told."""
        return Head(self.author, self.head, self.head_hash)

    def at(self, sequence: int) -> Link | None:
        """An accepted envelope; None if it is on disk only, or not here."""
        index = sequence - self.base - 1
        return self.links[index] if 0 <= index < len(self.links) else None

    def hash_at(self, sequence: int) -> bytes | None:
        """Its hash; None if it is on disk only, or not here."""
        if sequence == self.base:
            return self._base_hash
        link = self.at(sequence)
        return link.hash if link is not None else None

    def stretch(self, link: Link) -> tuple[Signed, ...]:
        """An envelope, with what vouches for it if its own signature does not verify."""
        links = self.links[link.sequence - self.base - 1 :]
        found: list[Signed] = []
        for each in links:
            found.append(each.envelope)
            if prove(each):
                break
        return tuple(found)

    def goes_on(self, written: float, scope: str) -> bool:
        """Whether the author may write at this time by what the chain has shown, as nearly always.

        False: `check` says.
        """
        ground = self._standing
        return (
            ground is not None
            and self._scope_held == scope
            and self.written <= written <= ground.expires
        )

    def check(
        self, update: Update | Step, membership: Membership | None, mesh: PeerId, scope: str
    ) -> None:
        """Whether the next envelope may be written.

        Raises:
            RefusedError: unauthorised, or dated before its predecessor.
        """
        if membership is None and self.goes_on(update.written, scope):
            return
        ground = self._standing
        if membership is not None:
            if membership.mesh != mesh:
                raise RefusedError("unauthorised", "the grants are of another mesh")
            try:
                ground = standing(membership, self.author)
            except GrantError as error:
                raise RefusedError("unauthorised", str(error)) from None
        if ground is None or not grants.allows(ground.scopes, scope):
            raise RefusedError("unauthorised", f"{self.author.short} holds no grant {scope!r}")
        if not self.written <= update.written <= ground.expires:
            raise RefusedError("unauthorised", f"{self.author.short}'s grant had expired")
        self._scope_held = scope if ground is self._standing else None

    def accept(self, position: int, incoming: Incoming) -> Link:
        """Append an envelope that passed every check."""
        update = incoming.update
        link = Link(
            position,
            update.sequence,
            incoming.envelope,
            incoming.hash,
            update.written,
            incoming.is_proven,
        )
        self.extend(link)
        if update.membership is not None:
            self._show(update.membership)
        return link

    def extend(self, link: Link) -> None:
        """Append the next envelope, one that shows no grants."""
        self.links.append(link)
        self.head, self.head_hash = link.sequence, link.hash
        self.written = link.written
        self.size += len(link.envelope.payload)

    def cut(self, upto: int) -> list[Link]:
        """Let nothing after `upto` count; the links that this takes out, if they are here."""
        self.upto = upto
        index = max(0, upto - self.base)
        taken, self.links = self.links[index:], self.links[:index]
        self._find_head()
        self.size -= sum(len(link.envelope.payload) for link in taken)
        return taken

    def mark(self) -> ChainMark:
        """Where the chain stands."""
        return ChainMark(
            self.author,
            self.head,
            self.head_hash,
            self.written,
            self.size,
            self.membership,
            self.stuck,
        )

    def restore(self, mark: ChainMark) -> None:
        """Go back, or on, to where it stood; links after it are forgotten."""
        self.links = self.links[: max(0, mark.sequence - self.base)]
        if not self.links:
            self.base, self._base_hash = mark.sequence, mark.hash
        self._find_head()
        self.written, self.size, self.stuck = mark.written, mark.size, mark.stuck
        self.membership, self._standing, self._scope_held = None, None, None
        if mark.membership is not None:
            self._show(mark.membership)

    def archive(self, mark: ChainMark) -> list[Link]:
        """Let the disk alone keep what `mark` covers; the links that this takes out."""
        index = mark.sequence - self.base
        taken, self.links = self.links[:index], self.links[index:]
        self.base, self._base_hash = mark.sequence, mark.hash
        return taken

    def _find_head(self) -> None:
        self.head = self.base + len(self.links)
        self.head_hash = self.links[-1].hash if self.links else self._base_hash

    def _show(self, membership: Membership) -> None:
        self.membership = membership
        self._standing = standing(membership, self.author)
        self._scope_held = None


def prove(link: Link) -> bool:
    """Whether the link's own signature verifies; looked at once."""
    if not link.is_proven:
        link.is_proven = link.envelope.verifies()
    return link.is_proven
