"""What envelopes prove to who holds nothing of a document: who wrote which value where.

An envelope that states where it writes needs no other to be understood. It proves that its
author, who had the right to, wrote this there at some time; not that nobody has written there
since, and not that nothing else is there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from lattica.errors import DocumentError, GrantError
from lattica.identity import grants
from lattica.identity.grants import Membership
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed
from lattica.store.chains.chain import standing
from lattica.store.chains.messages import Notice
from lattica.store.chains.notices import Notices
from lattica.store.chains.reading import Reader
from lattica.store.chains.refusals import RefusedError
from lattica.store.crdt.kinds import Place
from lattica.store.crdt.ledger import states
from lattica.store.crdt.quick import read_body
from lattica.store.crdt.state import client_id
from lattica.store.crdt.update import ANY


class Proof(NamedTuple):
    """What an entry was proven by; the later of two sorts after the earlier."""

    written: float  # by the author's clock, seconds since the epoch
    sequence: int  # of the update, among the author's
    author: PeerId


class Proven(NamedTuple):
    """A value that an author wrote in a place."""

    proof: Proof
    value: bytes


class Proofs:
    """Checks envelopes of one document, and keeps what notices say of their authors."""

    def __init__(self, mesh: PeerId, document: str, max_update: int) -> None:
        """`max_update`: bytes of one transaction."""
        self._mesh = mesh
        self._scope = grants.WRITE + document
        self._reader = Reader(mesh, document, max_update)
        self._notices = Notices(mesh, document)

    def learn(self, notices: Iterable[Notice]) -> None:
        """Take notices in; those that prove nothing are passed over."""
        for notice in notices:
            try:
                self._notices.add(notice)
            except RefusedError:
                continue

    def counts(self, proof: Proof) -> bool:
        """Whether no notice is known by which the author's update does not count."""
        cut = self._notices.cut(proof.author)
        return cut is None or cut.upto is None or proof.sequence <= cut.upto

    def read(
        self, envelopes: Iterable[Signed], memberships: Iterable[tuple[PeerId, Membership]]
    ) -> dict[Place, list[Proven]]:
        """What was written where; envelopes that prove nothing are passed over.

        `memberships`: what allows authors to write, beside what is in the envelopes.
        """
        shown = dict(memberships)
        found: dict[Place, list[Proven]] = {}
        for incoming in self._reader.read(envelopes, (), lambda _envelope, _error: None):
            update, author = incoming.update, incoming.envelope.author
            proof = Proof(update.written, update.sequence, author)
            membership = update.membership or shown.get(author)
            if membership is None or not self._may(membership, author, update.written):
                continue
            for place, value in _entries(author, update.body, update.stated):
                found.setdefault(place, []).append(Proven(proof, value))
        return found

    def _may(self, membership: Membership, author: PeerId, written: float) -> bool:
        if membership.mesh != self._mesh:
            return False
        try:
            ground = standing(membership, author)
        except GrantError:
            return False
        return grants.allows(ground.scopes, self._scope) and written <= ground.expires


def _entries(
    author: PeerId, body: bytes, stated: tuple[tuple[str, str, str], ...]
) -> list[tuple[Place, bytes]]:
    """The entries with keys that an update leaves, as far as it says where they are."""
    try:
        facts = read_body(body)
    except (DocumentError, msgspec.MsgspecError):
        return []
    if facts.client != client_id(author):
        return []
    places = iter(Place(*said) for said in stated)
    gone = [deleted for deleted in facts.deletes if deleted.client == facts.client]
    starts = [deleted.start for deleted in gone]  # rising
    found = []
    for entry in facts.entries:
        place = next(places, None) if states(entry) else entry.place
        if place is None or place.key is None or entry.content != ANY or entry.length != 1:
            continue
        before = bisect_right(starts, entry.start) - 1
        if before < 0 or gone[before].stop <= entry.start:
            found.append((place, entry.value))
    return found
