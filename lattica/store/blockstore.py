"""Blocks and manifests on disk. Blocking; called in threads.

A block appears under its name only when it is whole, verified and on disk, so whatever
can be read back after a crash is good.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from lattica.errors import BlockCorruptError, BlockMissingError, StoreError
from lattica.store.claims import Claims
from lattica.store.cutting import cut
from lattica.store.manifest import (
    BlockRef,
    FileEntry,
    Manifest,
    check_path,
    decode_manifest,
    hash_of,
    to_id,
)

PART = ".lattica-part"  # how files that are being written end
TRIES = 3
_HEX = re.compile(r"[0-9a-f]{64}")

Tick = Callable[[int], None]  # told how many more bytes are done


class BlockStore:
    """A directory: blocks/ab/<hash>, manifests/<hash>, pins/<hash>, uses/, tmp/.

    Several processes may share it: see `Claims`.
    """

    def __init__(self, directory: Path) -> None:
        """Open or create it, and clear what a crash left half-written.

        Raises:
            StoreError: the directory cannot be used.
        """
        self._blocks = directory / "blocks"
        self._manifests = directory / "manifests"
        self._temporary = directory / "tmp"
        self._pins = directory / "pins"
        self.claims = Claims(directory)
        try:
            for folder in (self._blocks, self._manifests, self._temporary, self._pins):
                folder.mkdir(parents=True, exist_ok=True)
            (directory / "uses").mkdir(exist_ok=True)
            _clear(self._temporary, "*")
        except OSError as error:
            raise StoreError(f"cannot use {directory} for blocks: {error}") from None

    # ------------------------------------------------------------------------------ blocks

    def has(self, block: BlockRef) -> bool:
        """Whether the block is here."""
        try:
            return self._path(block.hash).stat().st_size == block.size
        except OSError:
            return False

    def read(self, digest: bytes) -> bytes:
        """A block's bytes, verified again.

        Raises:
            BlockMissingError: it is not here, or was damaged on disk and is gone now.
        """
        path = self._path(digest)
        try:
            data = path.read_bytes()
        except OSError:
            raise BlockMissingError(f"block {digest.hex()[:16]} is not here") from None
        if hash_of(data) != digest:
            path.unlink(missing_ok=True)
            raise BlockMissingError(f"block {digest.hex()[:16]} was damaged on disk; removed")
        return data

    def write(self, block: BlockRef, data: bytes | memoryview) -> None:
        """Keep a block.

        Raises:
            BlockCorruptError: the bytes are others.
            StoreError: the disk does not take it.
        """
        if len(data) != block.size or hash_of(data) != block.hash:
            raise BlockCorruptError(f"these are not the bytes of block {block.hash.hex()[:16]}")
        if not self.has(block):
            self._put(self._path(block.hash), data)

    # --------------------------------------------------------------------------- manifests

    def manifests(self) -> list[bytes]:
        """The hashes of the manifests that are here."""
        names = sorted(path.name for path in self._manifests.iterdir())
        return [bytes.fromhex(name) for name in names if _HEX.fullmatch(name)]

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
            self._put(path, data)

    def has_manifest(self, digest: bytes) -> bool:
        """Whether a manifest is here."""
        return (self._manifests / digest.hex()).exists()

    def forget(self, digest: bytes) -> None:
        """Forget a manifest, not its blocks."""
        (self._manifests / digest.hex()).unlink(missing_ok=True)
        (self._pins / digest.hex()).unlink(missing_ok=True)

    def drop(self, digest: bytes) -> None:
        """Forget a block. Whoever calls it holds `Claims.sweeping`."""
        self._path(digest).unlink(missing_ok=True)

    def blocks(self) -> Iterator[tuple[bytes, int]]:
        """The hashes and sizes of all blocks that are here."""
        for folder in sorted(self._blocks.iterdir()):
            for path in sorted(folder.iterdir()):
                if _HEX.fullmatch(path.name):
                    yield bytes.fromhex(path.name), path.stat().st_size

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
        names = (path.name for path in self._pins.iterdir())
        return {bytes.fromhex(name) for name in names if _HEX.fullmatch(name)}

    def touch(self, digest: bytes) -> None:
        """A manifest is used now."""
        with contextlib.suppress(OSError):
            os.utime(self._manifests / digest.hex())

    def used(self, digest: bytes) -> float:
        """When a manifest was used last, in seconds since the Unix epoch; 0.0 if it is not here."""
        try:
            return (self._manifests / digest.hex()).stat().st_mtime
        except OSError:
            return 0.0

    def remove(self, digest: bytes) -> None:
        """Forget a manifest, and the blocks that no other one here has.

        While a process uses it, its blocks stay, for a later sweep.
        """
        with self.claims.sweeping():
            try:
                gone = decode_manifest(self.manifest(digest))
            except StoreError:
                return
            self.forget(digest)
            if digest in self.claims.in_use():
                return
            kept: set[bytes] = set()
            for other in self.manifests():
                with contextlib.suppress(StoreError):  # a damaged one names nothing any more
                    named = decode_manifest(self.manifest(other))
                    kept.update(block.hash for block in _blocks_of(named))
            for block in _blocks_of(gone):
                if block.hash not in kept:
                    self.drop(block.hash)

    # ------------------------------------------------------------------------ in and out

    def add(self, source: Path, block: int, tick: Tick) -> tuple[bytes, Manifest]:
        """Cut a file, or the files below a folder (hidden ones left out), into blocks.

        Raises:
            StoreError: it cannot be read, changes meanwhile, or the disk is full.
        """
        with self.claims.adding():
            try:
                files = [self._add_file(path, name, block, tick) for path, name in files_of(source)]
            except OSError as error:
                raise StoreError(f"cannot read {source}: {error}") from None
            manifest = Manifest(tuple(files))
            data = manifest.encode()
            decode_manifest(data)  # what others would refuse must not get out
            digest = hash_of(data)
            self.write_manifest(digest, data)
            self.touch(digest)
        return digest, manifest

    def _add_file(self, path: Path, name: str, block: int, tick: Tick) -> FileEntry:
        refs = []
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            lengths = list(cut(path, file, size, block))
            file.seek(0)
            for length in lengths:
                data = file.read(length)
                if len(data) != length:
                    raise StoreError(f"{path} changed while it was read")
                ref = BlockRef(hash_of(data), length)
                self.write(ref, data)
                refs.append(ref)
                tick(length)
        return FileEntry(name, size, tuple(refs))

    def add_bytes(self, data: bytes | memoryview, block: int) -> tuple[bytes, Manifest]:
        """Keep bytes as the only file of a manifest.

        Raises:
            StoreError: the disk does not take it.
        """
        with self.claims.adding():
            return self._add_bytes(memoryview(data).cast("B"), block)

    def _add_bytes(self, view: memoryview, block: int) -> tuple[bytes, Manifest]:
        refs = []
        for start in range(0, len(view), block):
            part = view[start : start + block]
            refs.append(BlockRef(hash_of(part), len(part)))
            self.write(refs[-1], part)
        manifest = Manifest((FileEntry("bytes", len(view), tuple(refs)),))
        encoded = manifest.encode()
        digest = hash_of(encoded)
        self.write_manifest(digest, encoded)
        self.touch(digest)
        return digest, manifest

    def export(self, files: Iterable[FileEntry], folder: Path) -> None:
        """Write files below `folder`; each appears whole or not at all.

        Raises:
            BlockMissingError: a block is not here.
            StoreError: a path leads elsewhere through a link, or the disk does not take it.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            root = folder.resolve()
            for file in files:
                check_path(file.path)
                target = root / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.parent.resolve().is_relative_to(root):
                    raise StoreError(f"{target.parent} leads out of {folder}")
                # A name of its own: another process may be writing the same file.
                _clear(target.parent, f".*{PART}")
                partial = target.with_name(f".{secrets.token_hex(8)}{PART}")
                try:
                    with partial.open("xb") as out:
                        fcntl.flock(out, fcntl.LOCK_EX)  # see `_clear`
                        for block in file.blocks:
                            out.write(self.read(block.hash))
                        _sync(out)
                    os.replace(partial, target)
                finally:
                    partial.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write below {folder}: {error}") from None

    def free(self) -> int:
        """Bytes that the disk has left."""
        return shutil.disk_usage(self._blocks).free

    def _path(self, digest: bytes) -> Path:
        name = digest.hex()
        return self._blocks / name[:2] / name

    def _put(self, path: Path, data: bytes | memoryview) -> None:
        try:
            path.parent.mkdir(exist_ok=True)
            for _ in range(TRIES):
                if self._try_put(path, data):
                    return
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error}") from None
        raise StoreError(f"cannot write {path}: it is deleted again and again")

    def _try_put(self, path: Path, data: bytes | memoryview) -> bool:
        """False: `_clear` of another process took the file before it was locked."""
        temporary = self._temporary / secrets.token_hex(16)  # nobody else's, whoever shares this
        with temporary.open("xb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)  # see `_clear`
                file.write(data)
                _sync(file)  # before the name, or a power cut could leave it without content
                os.replace(temporary, path)
            except FileNotFoundError:
                return False
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
        return True


def files_of(source: Path) -> list[tuple[Path, str]]:
    """The files of `source` and their paths in a manifest, in order.

    Raises:
        StoreError: there is no such file or folder, or nothing in it.
    """
    if source.is_file():
        return [(source, source.name)]
    if not source.is_dir():
        raise StoreError(f"there is no file or folder {source}")
    found = []
    for base, folders, names in os.walk(source):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        for name in names:
            path = Path(base, name)
            if not name.startswith(".") and path.is_file():
                found.append((path, path.relative_to(source).as_posix()))
    if not found:
        raise StoreError(f"there is no file in {source}")
    return sorted(found, key=lambda item: item[1])


def _clear(folder: Path, pattern: str) -> None:
    """Delete what processes that are no more have left half-written."""
    for path in folder.glob(pattern):
        # Locked: somebody is writing it.
        ignored = (FileNotFoundError, BlockingIOError)
        with contextlib.suppress(*ignored), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)


def _blocks_of(manifest: Manifest) -> Iterator[BlockRef]:
    for file in manifest.files:
        yield from file.blocks


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
