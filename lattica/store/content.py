"""The bytes of one file of a manifest: one contiguous file in the store. Blocking.

Whole, it is `files/KEY`, read-only, and can be mapped into memory as it is. Before, it is
`parts/KEY`: sparse, each block at its place. Nothing is written down of which blocks a part
has: who opens one that an earlier process has left hashes what is there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from lattica.errors import StoreError
from lattica.identity import wire
from lattica.store.claims import Claims
from lattica.store.disk import READ_ONLY, Identity, has_data, identity, look, write_at
from lattica.store.manifest import FileEntry, hash_of

Tick = Callable[[int], None]  # told how many more bytes are done

UNKNOWN, GOOD, ABSENT = range(3)  # of a block: not looked at yet, verified, not here


def key_of(file: FileEntry) -> str:
    """What the store calls the content of a file: the same for all files with these blocks."""
    return hash_of(wire.encode(file.blocks)).hex()


class Content:
    """One file's blocks. Threads and processes may share it."""

    def __init__(self, key: str, file: FileEntry, directory: Path, claims: Claims) -> None:
        self.key = key
        self.size = file.size
        self.blocks = file.blocks
        self.path = directory / "files" / key  # where it is when it is whole
        self._part = directory / "parts" / key
        self._claims = claims
        self._offsets = tuple(itertools.accumulate((b.size for b in file.blocks), initial=0))
        self._lock = threading.Lock()
        self._states = bytearray([ABSENT]) * len(file.blocks)
        self._identity: Identity | None = None  # of the file that the states speak of
        self._is_whole = False
        self.refresh()

    # ------------------------------------------------------------------------------ asking

    @property
    def is_whole(self) -> bool:
        """Whether every block was here when it was looked at last."""
        return self._is_whole

    def has(self, index: int) -> bool:
        """Whether a block was verified here."""
        return self._states[index] == GOOD

    def missing(self) -> list[int]:
        """The blocks that were not verified here."""
        return [index for index, state in enumerate(self._states) if state != GOOD]

    def here(self) -> int:
        """Bytes of the blocks that are here; of a part that nobody has looked at, those on disk."""
        if self._is_whole:
            return self.size
        if UNKNOWN in self._states and (part := look(self._part)) is not None:
            return min(self.size, part.st_blocks * 512)
        return sum(block.size for at, block in enumerate(self.blocks) if self.has(at))

    def refresh(self) -> None:
        """Look at what is on disk now: another process may have completed or deleted it."""
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        whole = look(self.path)
        if whole is not None and whole.st_size == self.size:
            self._be(GOOD, identity(whole), is_whole=True)
            return
        part = look(self._part)
        if part is None or part.st_size != self.size:
            self._be(ABSENT, None)
        elif self._is_whole or identity(part) != self._identity:
            self._be(UNKNOWN, identity(part))

    def _be(self, state: int, found: Identity | None, *, is_whole: bool = False) -> None:
        self._states[:] = bytes([state]) * len(self._states)
        self._identity, self._is_whole = found, is_whole

    # ----------------------------------------------------------------------------- reading

    def read(self, index: int) -> bytes | None:
        """A block's bytes, verified again; None if it is not here, or damaged on disk."""
        found: Identity | None
        for _ in range(2):
            if self._states[index] == ABSENT:
                return None
            try:
                with self._file().open("rb") as file:
                    found = identity(os.fstat(file.fileno()))
                    data = self._read_from(file, index)
            except FileNotFoundError:
                self.refresh()  # completed, or gone
                continue
            except OSError:
                found, data = self._identity, None  # the disk cannot read it any more
            self._learn(index, found, is_good=data is not None)
            return data
        return None

    def _file(self) -> Path:
        return self.path if self._is_whole else self._part

    def _read_from(self, file: BinaryIO, index: int) -> bytes | None:
        block = self.blocks[index]
        data = os.pread(file.fileno(), block.size, self._offsets[index])
        return data if hash_of(data) == block.hash else None

    def _learn(self, index: int, found: Identity | None, *, is_good: bool) -> None:
        with self._lock:
            if found != self._identity:
                return  # it was another file's
            if not is_good and self._is_whole:
                # Not whole any more. Links to it end, so that nobody is shown what is damaged.
                with contextlib.suppress(OSError):
                    self.path.chmod(0o644)
                    os.replace(self.path, self._part)
                self._is_whole = False
            self._states[index] = GOOD if is_good else ABSENT

    def settle(self, tick: Tick = lambda _: None) -> None:
        """Look at what nobody has looked at yet, and again at what was not here."""
        self.refresh()
        if self._is_whole or self._identity is None:
            return
        try:
            with self._part.open("rb") as file:
                found = identity(os.fstat(file.fileno()))
                for index, block in enumerate(self.blocks):
                    if self._states[index] == GOOD:
                        continue
                    data = None
                    if has_data(file.fileno(), self._offsets[index], block.size):
                        with contextlib.suppress(OSError):
                            data = self._read_from(file, index)
                    self._learn(index, found, is_good=data is not None)
                    tick(0)
        except FileNotFoundError:
            self.refresh()

    # ----------------------------------------------------------------------------- writing

    def write(self, index: int, data: bytes | memoryview) -> None:
        """Put a block that was verified at its place, for it to be read from now on.

        Raises:
            StoreError: the disk does not take it.
        """
        try:
            with self._opened() as file:
                if file is not None and self._states[index] != GOOD:
                    write_at(file.fileno(), data, self._offsets[index])
                    self._learn(index, identity(os.fstat(file.fileno())), is_good=True)
        except OSError as error:
            raise StoreError(f"cannot write {self._part}: {error}") from None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[BinaryIO | None]:
        """The part, made if there is none; None if the content is whole."""
        with self._lock:
            whole = look(self.path)
            is_whole = whole is not None and whole.st_size == self.size
            file = None if is_whole else self._open()
        if file is None:
            yield None
            return
        with file:
            yield file

    def _open(self) -> BinaryIO:
        flags, made = os.O_RDWR | os.O_CLOEXEC, False
        try:
            descriptor = os.open(self._part, flags)
        except FileNotFoundError:
            # Not exclusively: another process may just have made it, which loses nothing.
            descriptor, made = os.open(self._part, flags | os.O_CREAT, 0o644), True
        # Not buffered: what is written is for others to read.
        file = os.fdopen(descriptor, "r+b", buffering=0)
        status = os.fstat(descriptor)
        if status.st_size != self.size:
            os.ftruncate(descriptor, self.size)
        if made or self._is_whole or identity(status) != self._identity:
            self._be(UNKNOWN, identity(status))
        return file

    def complete(self) -> bool:
        """Give it its place among the files if every block is here.

        Raises:
            StoreError: the disk does not take it.
        """
        self.refresh()
        if self._is_whole:
            return True
        try:
            with self._opened() as file:
                if file is None:
                    return True
                if self.missing():
                    self.settle()
                os.fsync(file.fileno())  # before the name, or a power cut could leave holes
                os.fchmod(file.fileno(), READ_ONLY)
                with self._claims.adding(), self._lock:  # in this order, as sweeps do
                    return self._promote(identity(os.fstat(file.fileno())))
        except OSError as error:
            with self._lock:
                self._be(UNKNOWN, self._identity)  # who knows what a failed sync has kept
            raise StoreError(f"cannot write {self._part}: {error}") from None

    def _promote(self, synced: Identity) -> bool:
        part = look(self._part)
        if part is not None and identity(part) == synced == self._identity:
            if self.missing():
                return False
            os.replace(self._part, self.path)
        self._refresh()  # or another process was first
        if self._is_whole:
            self._part.unlink(missing_ok=True)  # made by one that had not seen it yet
        return self._is_whole
