"""Manifests: the files of a folder as blocks, under one id."""

from __future__ import annotations

import base64
import itertools
import re
from typing import Annotated

import msgspec
from blake3 import blake3

from lattica.config import MIB
from lattica.errors import StoreError
from lattica.identity import wire

HASH_BYTES = 32
MAX_BLOCK = 4 * MIB
MAX_FILES = 65_536
MAX_PATH = 1024  # bytes
MAX_PART = 200  # bytes of one component of a path; file systems allow 255
PREFIX = "b3-"

_ID = re.compile(r"b3-[a-z2-7]{52}")

Hash = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]


class BlockRef(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One block: BLAKE3 of its bytes, and how many they are."""

    hash: Hash
    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_BLOCK)]


class FileEntry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One file: its relative path with '/', its size in bytes, its blocks in order."""

    path: str
    size: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
    blocks: tuple[BlockRef, ...]


class Manifest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="v1"):
    """The files of a folder, or one file alone."""

    files: Annotated[tuple[FileEntry, ...], msgspec.Meta(max_length=MAX_FILES)]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def select(self, paths: list[str] | None) -> list[FileEntry]:
        """The files with these paths; all for None.

        Raises:
            StoreError: there is no such file.
        """
        if paths is None:
            return list(self.files)
        files = {file.path: file for file in self.files}
        if absent := sorted(set(paths) - set(files)):
            raise StoreError(f"the manifest has no file {', '.join(absent)}")
        return [files[path] for path in dict.fromkeys(paths)]

    def encode(self) -> bytes:
        """The bytes that the id is made of."""
        return wire.encode(self)


def blocks_of(manifest: Manifest) -> tuple[BlockRef, ...]:
    """Its blocks in the order of its files, each once."""
    return tuple(dict.fromkeys(block for file in manifest.files for block in file.blocks))


def decode_manifest(data: bytes) -> Manifest:
    """A manifest that is safe to act on.

    Raises:
        StoreError: malformed, sizes that do not add up, or a path that leads elsewhere.
    """
    try:
        manifest = wire.decode(data, Manifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StoreError(f"the manifest does not decode: {error}") from None
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Refuse what cannot be acted on.

    Raises:
        StoreError: sizes that do not add up, or a path that leads elsewhere.
    """
    paths: set[str] = set()
    for file in manifest.files:
        check_path(file.path)
        if sum(block.size for block in file.blocks) != file.size:
            raise StoreError(f"the blocks of {file.path!r:.80} do not add up to its size")
        if file.path in paths:
            raise StoreError(f"the manifest names {file.path!r:.80} twice")
        paths.add(file.path)
    # Sorted, what is in a folder follows it; a set of all folders could be far larger
    # than the manifest.
    for path, following in itertools.pairwise(sorted(f"{path}/" for path in paths)):
        if following.startswith(path):
            raise StoreError(f"{path[:-1]!r:.80} is a file and a folder")


def check_path(path: str) -> None:
    """Refuse what could be written outside the folder, or not at all.

    Raises:
        StoreError: absolute, with '..' or '.', empty parts, backslashes, or unprintable.
    """
    parts = path.split("/")
    if (
        not path.isprintable()
        or "\\" in path
        or ":" in parts[0]
        or len(path.encode()) > MAX_PATH
        or any(part in ("", ".", "..") or len(part.encode()) > MAX_PART for part in parts)
    ):
        raise StoreError(f"{path!r:.80} is no safe relative path")


def to_id(digest: bytes) -> str:
    """The text form of a manifest's hash."""
    return PREFIX + base64.b32encode(digest).decode().rstrip("=").lower()


def is_manifest_id(text: str) -> bool:
    """Whether this is how an id is written."""
    return _ID.fullmatch(text) is not None


def to_hash(manifest_id: str) -> bytes:
    """The hash that an id names.

    Raises:
        StoreError: it is no id.
    """
    if not isinstance(manifest_id, str) or not _ID.fullmatch(manifest_id):
        raise StoreError(f"{manifest_id!r:.80} is no manifest id: 'b3-' and 52 characters")
    return base64.b32decode(manifest_id[len(PREFIX) :].upper() + "====")


def hash_of(data: bytes | memoryview) -> bytes:
    """The address of a block or a manifest."""
    return blake3(data).digest()
