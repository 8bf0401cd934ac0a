"""Large manifests as trees: a root that lists parts, which are blocks and travel as such.

The parts together are the bytes of a plain manifest. There is one level of them: a root of
the largest manifest that is taken is a few kilobytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated

import msgspec

from lattica.config import KIB, MIB
from lattica.errors import StoreError
from lattica.identity import wire
from lattica.store.blocks.content import key_of
from lattica.store.blocks.manifest import BlockRef, FileEntry, Manifest, check_manifest

PLAIN = 1 * MIB  # bytes of a manifest that is still kept and sent in one piece
MAX_PART = 1 * MIB
MAX_PARTS = 4096
MAX_ENCODED = 16 * MIB  # bytes of a whole manifest

# Where new parts begin: before blocks whose hash begins like this, one in 2,048. So parts end
# where they did in the version before, whatever came or went elsewhere in the manifest.
MARK = re.compile(rb"\x92\xc4\x20\x00[\x00-\x1f]")
SHORTEST = 16 * KIB
LONGEST = 256 * KIB  # several providers have something to give


class Root(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="v2"):
    """A manifest whose bytes are those of its parts, one after the other."""

    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_ENCODED)]
    parts: Annotated[tuple[BlockRef, ...], msgspec.Meta(min_length=1, max_length=MAX_PARTS)]

    def encode(self) -> bytes:
        """The bytes that the id is made of."""
        return wire.encode(self)

    @property
    def file(self) -> FileEntry:
        """The manifest as a file, whose blocks are the parts. It has no path."""
        return FileEntry("", self.size, self.parts)


_decoder = msgspec.msgpack.Decoder(Manifest | Root)


def decode_top(data: bytes) -> Manifest | Root:
    """What an id names: a manifest, or the root of a large one. Safe to act on.

    Raises:
        StoreError: malformed, or a root with parts that are too large or do not add up.
    """
    try:
        top: Manifest | Root = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StoreError(f"the manifest does not decode: {error}") from None
    if isinstance(top, Manifest):
        check_manifest(top)
        return top
    if any(part.size > MAX_PART for part in top.parts):
        raise StoreError(f"the manifest has a part of more than {MAX_PART} bytes")
    if sum(part.size for part in top.parts) != top.size:
        raise StoreError("the parts of the manifest do not add up to its size")
    return top


def name_of(tree: FileEntry) -> bytes:
    """What peers call the parts of a manifest: the hash of their list."""
    return bytes.fromhex(key_of(tree))


def cut_manifest(encoded: bytes) -> Iterator[int]:
    """The sizes of a manifest's parts."""
    start = 0
    for mark in MARK.finditer(encoded):
        end = mark.start()
        if end - start >= SHORTEST:
            yield from _pieces(end - start)
            start = end
    yield from _pieces(len(encoded) - start)


def _pieces(size: int) -> Iterator[int]:
    for start in range(0, size, LONGEST):
        yield min(LONGEST, size - start)
