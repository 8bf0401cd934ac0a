"""One author's chain of envelopes in one document, and what it proves."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from lattica.errors import GrantError
from lattica.identity import grants
from lattica.identity.grants import Membership
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed
from lattica.store.messages import GENESIS, Head, Update, envelope_hash
from lattica.store.refusals import RefusedError
from lattica.store.state import client_id


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


class Link(NamedTuple):
    """An accepted envelope and its place in the order of acceptance."""

    position: int
    sequence: int
    envelope: Signed
    hash: bytes


class Chain:
    """Accepted envelopes of one author, without a gap, and those that wait for one to fill."""

    def __init__(self, author: PeerId) -> None:
        self.author = author
        self.client = client_id(author)
        self.links: list[Link] = []
        self.standing: Standing | None = None
        self.written = -math.inf
        self.size = 0  # bytes
        self.stuck = ""  # why no more is taken; set by a refusal that every peer must repeat
        self.forked = False
        self.waiting: dict[int, Signed] = {}  # by sequence number

    @property
    def head(self) -> int:
        """The sequence number of the last accepted envelope; 0 before the first."""
        return len(self.links)

    @property
    def head_hash(self) -> bytes:
        """What the next envelope must name as its previous one."""
        return self.links[-1].hash if self.links else GENESIS

    def as_head(self) -> Head:
        """What others are told."""
        return Head(self.author, self.head, self.head_hash)

    def check(self, update: Update, membership: Membership | None, scope: str) -> Standing:
        """Whether the next envelope may be written, and on what ground.

        Raises:
            RefusedError: unauthorised, or dated before its predecessor.
        """
        if membership is not None:
            if membership.mesh != update.mesh:
                raise RefusedError("unauthorised", "the grants are of another mesh")
            try:
                ground: Standing | None = standing(membership, self.author)
            except GrantError as error:
                raise RefusedError("unauthorised", str(error)) from None
        else:
            ground = self.standing
        if ground is None or not grants.allows(ground.scopes, scope):
            raise RefusedError("unauthorised", f"{self.author.short} holds no grant {scope!r}")
        if not self.written <= update.written <= ground.expires:
            raise RefusedError("unauthorised", f"{self.author.short}'s grant had expired")
        return ground

    def accept(self, position: int, envelope: Signed, update: Update, ground: Standing) -> Link:
        """Append an envelope that passed every check."""
        link = Link(position, update.sequence, envelope, envelope_hash(envelope))
        self.links.append(link)
        self.standing = ground
        self.written = update.written
        self.size += len(envelope.payload)
        return link
