"""Taking files into a store: each is copied once, cut and hashed on the way. Blocking."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from lattica.errors import StoreError
from lattica.store.blocks.content import Content, Tick
from lattica.store.blocks.cutting import cut
from lattica.store.blocks.disk import READ_ONLY, clone, scratch, sync
from lattica.store.blocks.index import Index
from lattica.store.blocks.manifest import BlockRef, FileEntry, hash_of


class Intake:
    """Whoever uses it holds `Claims.adding`: what it brings is named by no manifest yet."""

    def __init__(self, index: Index, temporary: Path) -> None:
        self._index = index
        self._temporary = temporary

    def file(self, path: Path, name: str, block: int, tick: Tick) -> FileEntry:
        """Take a file in.

        Raises:
            StoreError: it cannot be read, changes meanwhile, or the disk is full.
        """
        try:
            with path.open("rb") as source:
                size = os.fstat(source.fileno()).st_size
                lengths = list(cut(path, source, size, block))
                source.seek(0)
                entry = self._known(source, name, size, lengths, tick)
                return entry or self._copy(source, name, size, lengths, tick)
        except OSError as error:
            raise StoreError(f"cannot take in {path}: {error}") from None

    def data(self, name: str, data: memoryview, lengths: Iterable[int]) -> FileEntry:
        """Take bytes in, cut into blocks of these lengths.

        Raises:
            StoreError: the disk does not take it.
        """
        ends = itertools.accumulate(lengths, initial=0)
        parts = [data[start:end] for start, end in itertools.pairwise(ends)]
        entry = FileEntry(name, len(data), tuple(BlockRef(hash_of(p), len(p)) for p in parts))
        try:
            if not self._index.content(entry).is_whole:
                with scratch(self._temporary) as (file, temporary):
                    file.write(data)
                    self._keep(file, temporary, entry)
        except OSError as error:
            raise StoreError(f"cannot write in {self._temporary}: {error}") from None
        return entry

    def _known(
        self, source: BinaryIO, name: str, size: int, lengths: list[int], tick: Tick
    ) -> FileEntry | None:
        """The entry of a file that is here already, so that nothing is written; else None."""
        same = list(self._index.whole(size))
        refs: list[BlockRef] = []
        for ref in _refs(source, lengths):
            same = [each for each in same if each.blocks[len(refs) : len(refs) + 1] == (ref,)]
            refs.append(ref)
            if not same:
                return None
        if not any(len(each.blocks) == len(refs) for each in same):
            return None
        tick(size)
        return FileEntry(name, size, tuple(refs))

    def _copy(
        self, source: BinaryIO, name: str, size: int, lengths: list[int], tick: Tick
    ) -> FileEntry:
        with scratch(self._temporary) as (file, temporary):
            refs = []
            is_shared = clone(source, file)
            source.seek(0)
            for ref, data in _read(file if is_shared else source, lengths):
                if not is_shared:
                    file.write(data)
                refs.append(ref)
                tick(ref.size)
            entry = FileEntry(name, size, tuple(refs))
            if not self._index.content(entry).is_whole:
                if is_shared:
                    file.truncate(size)  # the original may have grown
                self._keep(file, temporary, entry)
        return entry

    def _keep(self, file: BinaryIO, temporary: Path, entry: FileEntry) -> None:
        sync(file)  # before the name, or a power cut could leave it without content
        os.fchmod(file.fileno(), READ_ONLY)
        content: Content = self._index.content(entry)
        os.replace(temporary, content.path)
        content.refresh()


def _read(file: BinaryIO, lengths: Iterable[int]) -> Iterator[tuple[BlockRef, bytes]]:
    for length in lengths:
        data = file.read(length)
        if len(data) != length:
            raise StoreError(f"{file.name} changed while it was read")
        yield BlockRef(hash_of(data), length), data


def _refs(file: BinaryIO, lengths: Iterable[int]) -> Iterator[BlockRef]:
    return (ref for ref, _ in _read(file, lengths))


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
