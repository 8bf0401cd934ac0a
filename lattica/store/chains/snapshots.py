"""Snapshots on disk: a document without its history, signed by the peer that keeps it.

Opening a document then reads what was written since, instead of everything ever written.
A peer trusts only its own: what others send is always the envelopes.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from lattica.errors import SignatureError
from lattica.identity import wire
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed
from lattica.store.chains.chain import ChainMark
from lattica.store.chains.messages import MAX_AUTHORS, Name
from lattica.store.chains.replica import Snapshot

DOMAIN = "doc-snapshot"


class Kept(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The payload of a snapshot's `Signed` envelope."""

    mesh: PeerId
    document: Name
    chains: Annotated[tuple[ChainMark, ...], msgspec.Meta(max_length=MAX_AUTHORS)]
    content: bytes  # pycrdt's update that holds everything


def seal_snapshot(identity: Identity, mesh: PeerId, document: str, snapshot: Snapshot) -> bytes:
    """The bytes to keep."""
    kept = Kept(mesh, document, snapshot.chains, snapshot.content)
    return wire.encode(Signed.seal(identity, DOMAIN, kept))


def open_snapshot(data: bytes, identity: Identity, mesh: PeerId, document: str) -> Snapshot | None:
    """The snapshot that `seal_snapshot` made; None if it is damaged or of somebody else."""
    try:
        envelope = wire.decode(data, Signed)
        kept = envelope.open(DOMAIN, Kept)
    except (SignatureError, msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if (envelope.author, kept.mesh, kept.document) != (identity.peer_id, mesh, document):
        return None
    return Snapshot(kept.chains, kept.content)
