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
RULING = "doc-ruling"
PRESENCE = "doc-presence"
HASH_BYTES = 32
MAX_AUTHORS = 4096
MAX_BATCH = 4096  # envelopes in one message
MAX_VOUCHED = 64  # envelopes that one signature may stand for
MAX_OTHERS = 256  # peers named in one message
MAX_NOTICES = 256  # in one message
MAX_PRESENCES = 32  # in one message
MAX_STATED = 1024  # places that an update states
MAX_STATED_BYTES = 16 * 1024  # of their text
GENESIS = bytes(HASH_BYTES)  # what an author's first envelope follows

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_.:/-]{0,127}\Z")]
Hash = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Sequence = Annotated[int, msgspec.Meta(ge=1, lt=2**53)]
Stated = Annotated[tuple[tuple[str, str, str], ...], msgspec.Meta(max_length=MAX_STATED)]


class Update(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One transaction of one author: the payload of a `Signed` envelope."""

    mesh: PeerId
    document: Name
    sequence: Sequence  # 1, 2, ... per author and document
    previous: Hash  # `envelope_hash` of the author's envelope before
    written: float  # by the author's clock, seconds since the epoch; never goes back
    body: bytes  # pycrdt's update
    membership: Membership | None = None  # from here on, what allows the author to write
    # Kind, name and key of each entry in the place of another, in their order: Yjs names only the
    # other, so without this the update would say what was written, but not where. None, or all.
    stated: Stated = ()


class Step(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """An `Update` without its first two fields, when they are known to be a document's."""

    sequence: Sequence
    previous: Hash
    written: float
    body: bytes
    membership: Membership | None = None
    stated: Stated = ()


class Head(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How far one author's chain goes at a peer."""

    author: PeerId
    sequence: Sequence
    hash: Hash


class Ruling(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the mesh's authority says of one author: the payload of a `Signed` envelope."""

    mesh: PeerId
    document: Name
    subject: PeerId
    upto: Annotated[int, msgspec.Meta(ge=0, lt=2**53)] | None = None  # nothing after it counts
    membership: Membership | None = None  # from now on, what allows the subject to write


Segment = Annotated[tuple[Signed, ...], msgspec.Meta(max_length=MAX_VOUCHED)]


class Notice(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What bears on an author's right to write, and proves itself to whoever reads it.

    Either one ruling; or the proof of a fork: two stretches of envelopes of one author that
    cannot both stand, each with a last one whose signature verifies.
    """

    one: Segment
    other: Segment = ()
    membership: Membership | None = None  # of a fork's author: that it ever could write


class Mark(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a peer knows about an author by notices."""

    author: PeerId
    upto: Annotated[int, msgspec.Meta(ge=0, le=2**53)]  # its last update that counts
    granted: float  # until when a ruling lets it write, seconds since the Unix epoch; 0.0: none


class Presence(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a peer says of itself while it has a document open: the payload of a `Signed`."""

    mesh: PeerId
    document: Name
    sequence: Sequence  # a later one counts; the peer's clock in microseconds since the epoch
    state: bytes  # a plain value in its canonical form; empty: it has nothing to say any more
    membership: Membership  # what lets it read the document


Heads = Annotated[tuple[Head, ...], msgspec.Meta(max_length=MAX_AUTHORS)]
Envelopes = Annotated[tuple[Signed, ...], msgspec.Meta(max_length=MAX_BATCH)]


Marks = Annotated[tuple[Mark, ...], msgspec.Meta(max_length=MAX_AUTHORS)]
Notices = Annotated[tuple[Notice, ...], msgspec.Meta(max_length=MAX_NOTICES)]
Presences = Annotated[tuple[Signed, ...], msgspec.Meta(max_length=MAX_PRESENCES)]

Others = Annotated[tuple[PeerId, ...], msgspec.Meta(max_length=MAX_OTHERS)]


class Exchange(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A peer's heads, and what the asking peer lacks, in an order that can be applied."""

    heads: Heads
    envelopes: Envelopes
    is_complete: bool  # whether that is all the asking peer lacks
    marks: Marks = ()
    notices: Notices = ()


def envelope_hash(envelope: Signed) -> bytes:
    """What the next envelope of the chain refers to.

    The signature is left out: an author can make several over the same bytes.
    """
    return blake3(envelope.author.raw + envelope.payload).digest()
