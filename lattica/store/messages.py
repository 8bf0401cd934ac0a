"""What peers say to each other about documents, and what they sign."""

from __future__ import annotations

from typing import Annotated

import msgspec
from blake3 import blake3

from lattica.identity.grants import Membership
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed

SERVICE = "documents"
DOMAIN = "doc-update"
HASH_BYTES = 32
MAX_AUTHORS = 4096
MAX_BATCH = 4096  # envelopes in one message
GENESIS = bytes(HASH_BYTES)  # what an author's first envelope follows

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_.:/-]{0,127}\Z")]
Hash = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Sequence = Annotated[int, msgspec.Meta(ge=1, lt=2**53)]


class Update(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One transaction of one author: the payload of a `Signed` envelope."""

    mesh: PeerId
    document: Name
    sequence: Sequence  # 1, 2, ... per author and document
    previous: Hash  # `envelope_hash` of the author's envelope before
    written: float  # by the author's clock, seconds since the epoch; never goes back
    body: bytes  # pycrdt's update
    membership: Membership | None = None  # from here on, what allows the author to write


class Head(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How far one author's chain goes at a peer."""

    author: PeerId
    sequence: Sequence
    hash: Hash


Heads = Annotated[tuple[Head, ...], msgspec.Meta(max_length=MAX_AUTHORS)]
Envelopes = Annotated[tuple[Signed, ...], msgspec.Meta(max_length=MAX_BATCH)]


class Exchange(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A peer's heads, and what the asking peer lacks, in an order that can be applied."""

    heads: Heads
    envelopes: Envelopes
    is_complete: bool  # whether that is all the asking peer lacks


def envelope_hash(envelope: Signed) -> bytes:
    """What the next envelope of the chain refers to.

    The signature is left out: an author can make several over the same bytes.
    """
    return blake3(envelope.author.raw + envelope.payload).digest()
