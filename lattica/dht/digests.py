"""Eight bytes that say which contacts, or which records, somebody has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from lattica.dht.routing import PeerNode
from lattica.identity.signed import Signed

DIGEST = 8  # bytes; who finds two sets with one digest has told of one of them, which it could


def contacts_digest(nodes: Iterable[PeerNode]) -> bytes:
    """Of contacts, nearest first."""
    return _digest(node.id for node in nodes)


def records_digest(envelopes: Iterable[Signed]) -> bytes:
    """Of records, in any order; empty if there are none."""
    said = sorted(envelope.author.raw + envelope.signature for envelope in envelopes)
    return _digest(said) if said else b""


def _digest(parts: Iterable[bytes]) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=DIGEST).digest()
