"""Manifests on disk and the contents of their files. Blocking; called in threads.

What has its name in `manifests/` or `files/` is whole, verified and on disk; what is in
`parts/` is verified before it is read. So whatever can be read back after a crash is good.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lattica.errors import BlockCorruptError, BlockMissingError, StoreError
from lattica.store.blocks import disk, exporting
from lattica.store.blocks.claims import Claims
from lattica.store.blocks.content import Content, Tick
from lattica.store.blocks.filling import Filling
from lattica.store.blocks.index import Index
from lattica.store.blocks.intake import Intake, files_of
from lattica.store.blocks.manifest import (
    FileEntry,
    Manifest,
    blocks_of,
    decode_manifest,
    hash_of,
    to_id,
)
from lattica.store.blocks.sets import mask_of
from lattica.store.blocks.takeover import take_over
from lattica.store.blocks.tree import (
    MAX_ENCODED,
    PLAIN,
    Root,
    cut_manifest,
    decode_top,
    name_of,
)

_HEX = re.compile(r"[0-9a-f]{64}")
UNWANTED = 0.0  # when a manifest was used that nobody wants any more
FOLDERS = ("manifests", "files", "parts", "pins", "trees", "uses", "tmp")


class Known(NamedTuple):
    """What is here of a manifest."""

    manifest: Manifest | None  # None: its parts are not all here
    tree: FileEntry | None = None  # its own bytes, if they are kept in parts

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """All that it needs to be here, its own parts among it."""
        own = () if self.tree is None else (self.tree,)
        return own if self.manifest is None else (*own, *self.manifest.files)


class BlockStore:
    """A directory: manifests/HASH, files/KEY, parts/KEY, pins/HASH, trees/HASH/, uses/, tmp/.

    Several processes may share it: see `Claims`.
    """

    def __init__(self, directory: Path) -> None:
        """Open or create it, clear what a crash left half-written, and take an old one over.

        Raises:
            StoreError: the directory cannot be used.
        """
        self._manifests = directory / "manifests"
        self._pins = directory / "pins"
        self._trees = directory / "trees"
        self._temporary = directory / "tmp"
        self._directory = directory
        self.claims = Claims(directory)
        self._index = Index(directory, self.claims)
        try:
            for folder in FOLDERS:
                (directory / folder).mkdir(parents=True, exist_ok=True)
            disk.clear(self._temporary)
            self._roots: dict[bytes, bytes] = {}  # roots, by what peers call their parts
            self._seen = 0  # when the folder of manifests had last changed
            self._refresh()
            take_over(directory, self._index)
        except OSError as error:
            raise StoreError(f"cannot use {directory} for blocks: {error}") from None

    # ------------------------------------------------------------------------------ blocks

    def read(self, digest: bytes) -> bytes:
        """A block's bytes, verified again.

        Raises:
            BlockMissingError: it is not here, or was damaged on disk.
        """
        data = self._find(digest)
        if data is None:  # another process may have brought it
            self._refresh()
            for content, _ in self._index.places(digest):
                content.refresh()
            data = self._find(digest)
        if data is None:
            raise BlockMissingError(f"block {digest.hex()[:16]} is not here, or damaged")
        return data

    def _find(self, digest: bytes) -> bytes | None:
        for content, index in self._index.places(digest):
            if (data := content.read(index)) is not None:
                return data
        return None

    def content(self, file: FileEntry) -> Content:
        """The bytes of one file, as far as they are here."""
        return self._index.content(file)

    def fill(self, files: Sequence[FileEntry], tick: Tick = lambda _: None) -> Filling:
        """What is to be fetched for these files. `tick` may raise, to end it."""
        return Filling([self._index.content(file) for file in files], self._find, tick)

    def held(self, manifest: Manifest) -> int:
        """The blocks of a manifest that are here: a bit for each, as `blocks_of` numbers them."""
        here: set[bytes] = set()
        for file in manifest.files:
            content = self.content(file)
            content.settle()
            here.update(block.hash for at, block in enumerate(file.blocks) if content.has(at))
        blocks = enumerate(blocks_of(manifest))
        return mask_of(number for number, block in blocks if block.hash in here)

    def contents(self) -> Iterator[tuple[str, int]]:
        """The keys of all contents on disk, whole or in part, and the bytes that they take."""
        for folder in ("files", "parts"):
            for path in sorted((self._directory / folder).iterdir()):
                status = disk.look(path)
                if _HEX.fullmatch(path.name) and status is not None:
                    yield path.name, min(status.st_size, status.st_blocks * 512)

    def drop(self, key: str) -> None:
        """Delete a content. Whoever calls it holds `Claims.sweeping`."""
        for folder in ("files", "parts"):
            (self._directory / folder / key).unlink(missing_ok=True)

    # --------------------------------------------------------------------------- manifests

    def manifests(self) -> list[bytes]:
        """The hashes of the manifests that are here."""
        return sorted(_hashes(self._manifests))

    def manifest(self, digest: bytes) -> bytes:
        """A manifest's bytes, verified again.

        Raises:
            BlockMissingError: it is not here, or was damaged on disk and is gone now.
        """
        path = self._manifests / digest.hex()
        try:
            data = path.read_bytes()
        except OSError:
            raise BlockMissingError(f"{to_id(digest)} is not here") from None
        if hash_of(data) != digest:
            path.unlink(missing_ok=True)
            raise BlockMissingError(f"{to_id(digest)} was damaged on disk; removed")
        return data

    def write_manifest(self, digest: bytes, data: bytes | memoryview) -> None:
        """Keep a manifest.

        Raises:
            BlockCorruptError: the bytes are others.
            StoreError: the disk does not take it.
        """
        if hash_of(data) != digest:
            raise BlockCorruptError(f"these are not the bytes of {to_id(digest)}")
        path = self._manifests / digest.hex()
        if not path.exists():
            disk.put(path, data, self._temporary)
        self._learn(digest)

    def known(self, digest: bytes) -> Known:
        """What is here of a manifest.

        Raises:
            BlockMissingError: nothing.
            StoreError: its bytes are those of no manifest.
        """
        top = decode_top(self.manifest(digest))
        if isinstance(top, Manifest):
            known = Known(top)
        else:
            self._roots[name_of(top.file)] = digest
            self._index.add(digest, (top.file,))
            known = Known(self._joined(top), top.file)
        self._index.add(digest, known.files)
        return known

    def _joined(self, root: Root) -> Manifest | None:
        content = self._index.content(root.file)
        content.refresh()  # another process may have brought them
        parts = []
        for at in range(len(root.parts)):
            if (data := content.read(at)) is None:
                return None
            parts.append(data)
        return decode_manifest(b"".join(parts))

    def whole(self, digest: bytes) -> Manifest:
        """A manifest all of which is here.

        Raises:
            BlockMissingError: it is not here, or only in part.
            StoreError: its bytes are those of no manifest.
        """
        known = self.known(digest)
        if known.manifest is None:
            raise BlockMissingError(f"parts of {to_id(digest)} are not here")
        return known.manifest

    def spoken_of(self, name: bytes) -> Manifest | None:
        """What peers number the blocks of: a manifest, or by their own name its parts.

        None if it is a manifest that is not whole yet.

        Raises:
            BlockMissingError: it is not here.
        """
        if name not in self._roots and not self.has_manifest(name):
            self._refresh()
        root = self._roots.get(name)
        if root is not None and (tree := self.known(root).tree) is not None:
            return Manifest((tree,))
        return self.known(name).manifest

    def has_manifest(self, digest: bytes) -> bool:
        """Whether a manifest is here, or the root of one."""
        return (self._manifests / digest.hex()).exists()

    def _learn(self, digest: bytes) -> None:
        with contextlib.suppress(StoreError):  # a damaged one names nothing
            self.known(digest)

    def _refresh(self) -> None:
        """Other processes add manifests and forget them."""
        changed = self._manifests.stat().st_mtime_ns
        if changed == self._seen:
            return
        here, known = _hashes(self._manifests), self._index.manifests
        for digest in here - known:
            self._learn(digest)
        for digest in known - here:
            self._index.discard(digest)
        self._seen = changed

    def forget(self, digest: bytes) -> None:
        """Forget a manifest, not what it names."""
        shutil.rmtree(self._trees / digest.hex(), ignore_errors=True)
        (self._manifests / digest.hex()).unlink(missing_ok=True)
        (self._pins / digest.hex()).unlink(missing_ok=True)
        self._index.discard(digest)

    def pin(self, digest: bytes, *, pinned: bool = True) -> None:
        """Keep a manifest whatever room is wanted, or do so no more.

        Raises:
            BlockMissingError: it is not here.
        """
        if not self.has_manifest(digest):
            raise BlockMissingError(f"{to_id(digest)} is not here")
        pin = self._pins / digest.hex()
        try:
            if pinned:
                pin.touch()
            else:
                pin.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot pin in {self._pins}: {error}") from None

    def pins(self) -> set[bytes]:
        """The manifests that are pinned."""
        return _hashes(self._pins)

    def touch(self, digest: bytes) -> None:
        """A manifest is used now, so it is not unwanted any more."""
        with contextlib.suppress(OSError):
            os.utime(self._manifests / digest.hex())

    def is_unwanted(self, digest: bytes) -> bool:
        """Whether a manifest was removed while it was in use, and is left for a sweep."""
        return self.used(digest) == UNWANTED

    def unwant(self, digest: bytes) -> None:
        """Leave a manifest for a sweep, once nobody uses it."""
        (self._pins / digest.hex()).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.utime(self._manifests / digest.hex(), (UNWANTED, UNWANTED))

    def used(self, digest: bytes) -> float:
        """When a manifest was used last, in seconds since the Unix epoch; 0.0 if it is not here."""
        try:
            return (self._manifests / digest.hex()).stat().st_mtime
        except OSError:
            return 0.0

    def remove(self, digest: bytes) -> None:
        """Forget a manifest, and the contents that no other one here has.

        While a process uses it, it stays as it is, for a later sweep.
        """
        with self.claims.sweeping():
            self._refresh()
            try:
                gone = self.known(digest)
            except StoreError:
                return
            if digest in self.claims.in_use():
                self.unwant(digest)
                return
            contents = [self.content(file) for file in gone.files]
            self.forget(digest)
            for content in contents:
                if not self._index.is_named(content.key):
                    self.drop(content.key)

    # -------------------------------------------------------------------------- in and out

    def add(self, source: Path, block: int, tick: Tick) -> tuple[bytes, Manifest]:
        """Copy a file, or the files below a folder (hidden ones left out), cut into blocks.

        Raises:
            StoreError: it cannot be read, changes meanwhile, or the disk is full.
        """
        with self.claims.adding():
            intake = self._intake()
            return self._added([intake.file(*each, block, tick) for each in files_of(source)])

    def add_bytes(self, data: bytes | memoryview, block: int) -> tuple[bytes, Manifest]:
        """Keep bytes as the only file of a manifest.

        Raises:
            StoreError: the disk does not take it.
        """
        with self.claims.adding():
            view = memoryview(data).cast("B")
            lengths = (min(block, len(view) - at) for at in range(0, len(view), block))
            return self._added([self._intake().data("bytes", view, lengths)])

    def _intake(self) -> Intake:
        self._refresh()
        return Intake(self._index, self._temporary)

    def _added(self, files: list[FileEntry]) -> tuple[bytes, Manifest]:
        manifest = Manifest(tuple(files))
        data = manifest.encode()
        if len(data) > MAX_ENCODED:
            raise StoreError(
                f"the manifest is {len(data)} bytes, and {MAX_ENCODED} are allowed: add what "
                "these files are in several parts"
            )
        decode_manifest(data)  # what others would refuse must not get out
        if len(data) > PLAIN:
            tree = self._intake().data("", memoryview(data), cut_manifest(data))
            data = Root(tree.size, tree.blocks).encode()
        digest = hash_of(data)
        self.write_manifest(digest, data)
        self.touch(digest)
        return digest, manifest

    def export(self, files: Iterable[FileEntry], folder: Path) -> None:
        """Write files below `folder`; see `exporting.export`."""
        exporting.export([(file.path, self.content(file)) for file in files], folder)

    def link(self, digest: bytes, files: Iterable[FileEntry]) -> Path:
        """A folder with links to files of a manifest that are whole; see `exporting.link`."""
        folder = (self._trees / digest.hex()).absolute()
        exporting.link([(file.path, self.content(file)) for file in files], folder)
        return folder

    def free(self) -> int:
        """Bytes that the disk has left."""
        return shutil.disk_usage(self._directory).free


def _hashes(folder: Path) -> set[bytes]:
    names = (path.name for path in folder.iterdir())
    return {bytes.fromhex(name) for name in names if _HEX.fullmatch(name)}
