"""What peers say to each other about the blocks of one manifest.

A block's number is its place among the manifest's blocks, in the order of its files, each
counted once.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from lattica.identity.keys import PeerId
from lattica.rpc import Buffer

MAX_WANTED = 64  # blocks in one message
MAX_TOLD = 32  # peers in one message
MAX_NEWS = 4096  # blocks in one message

Number = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class Have(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a peer has of a manifest; the first of a stream says all, the others what is new."""

    blocks: bytes  # a bit for each block, lowest first; empty after the first message
    more: Annotated[tuple[Number, ...], msgspec.Meta(max_length=MAX_NEWS)]
    given: Annotated[tuple[Number, ...], msgspec.Meta(max_length=MAX_NEWS)]  # to others, just now
    peers: Annotated[tuple[PeerId, ...], msgspec.Meta(max_length=MAX_TOLD)]  # who fetches it too
    is_final: bool  # it is fetching no more of them


class Want(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Blocks to be given, and others that are not wanted any more."""

    blocks: Annotated[tuple[Number, ...], msgspec.Meta(max_length=MAX_WANTED)]
    dropped: Annotated[tuple[Number, ...], msgspec.Meta(max_length=MAX_WANTED)]


class Given(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A block; None if it is not here."""

    block: Number
    data: Buffer | None
