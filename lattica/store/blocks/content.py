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
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from lattica.errors import StoreError
from lattica.identity import wire
from lattica.store.blocks.claims import Claims
from lattica.store.blocks.disk import (
    READ_ONLY,
    Handle,
    Identity,
    has_data,
    identity,
    look,
    write_at,
)
from lattica.store.blocks.manifest import FileEntry, hash_of

Tick = Callable[[int], None]  # told how many more bytes are done

UNKNOWN, GOOD, ABSENT = range(3)  # of a block: not looked at yet, verified, not here


def key_of(file: FileEntry) -> str:
    """What the store calls the content of a file: the same for all files with these blocks."""
    return hash_of(wire.encode(file.blocks)).hex()


class Handles:
    """Which contents keep their file open: the last ones used. Threads may share it.

    Each call of the system that a thread makes may cost it a turn of the interpreter's lock,
    so a block that is read or written is one such call, and not five.
    """

    def __init__(self, limit: int = 128) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._users: OrderedDict[int, Content] = OrderedDict()

    def used(self, content: Content) -> None:
        """It has just opened its file."""
        with self._lock:
            self._users[id(content)] = content
            self._users.move_to_end(id(content))
            if len(self._users) > self._limit:
                self._users.popitem(last=False)[1].close()

    def closed(self, content: Content) -> None:
        """It keeps no file open."""
        with self._lock:
            self._users.pop(id(content), None)


class Content:
    """One file's blocks. Threads and processes may share it."""

    def __init__(
        self, key: str, file: FileEntry, directory: Path, claims: Claims, handles: Handles
    ) -> None:
        self.key = key
        self.size = file.size
        self.blocks = file.blocks
        self.path = directory / "files" / key  # where it is when it is whole
        self._part = directory / "parts" / key
        self._claims = claims
        self._handles = handles
        self._handle: Handle | None = None
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

    @property
    def is_full(self) -> bool:
        """Whether every block was verified here, whole or not."""
        return self._states.count(GOOD) == len(self._states)

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
        for _ in range(3):
            if self._states[index] == ABSENT:
                return None
            try:
                handle = self._handle or self._opened(self._file(), os.O_RDONLY)
            except OSError:
                self.refresh()  # completed, or gone
                continue
            data = self._read_from(handle.descriptor, index)
            if data is None and handle.identity != self._identity:
                self.close()  # it was another file's
                continue
            self._learn(index, handle.identity, is_good=data is not None)
            return data
        return None

    def _file(self) -> Path:
        return self.path if self._is_whole else self._part

    def _opened(self, path: Path, flags: int) -> Handle:
        handle = self._handle = Handle(path, flags)
        self._handles.used(self)
        return handle

    def close(self) -> None:
        """Keep no file open."""
        self._handle = None

    def _read_from(self, descriptor: int, index: int) -> bytes | None:
        block = self.blocks[index]
        try:
            data = os.pread(descriptor, block.size, self._offsets[index])
        except OSError:
            return None  # the disk cannot read it any more
        return data if hash_of(data) == block.hash else None

    def _learn(
        self, index: int, found: Identity | None, *, is_good: bool, may_be_late: bool = False
    ) -> None:
        """`may_be_late`: a bad block was perhaps read while it was being written."""
        with self._lock:
            if found != self._identity:
                return  # it was another file's
            if may_be_late and self._states[index] == GOOD:
                return
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
        handle = self._handle
        if handle is None or handle.identity != self._identity:
            try:
                handle = self._opened(self._part, os.O_RDONLY)
            except OSError:
                self.refresh()
                return
        for index, block in enumerate(self.blocks):
            if self._states[index] == GOOD:
                continue
            data = None
            if has_data(handle.descriptor, self._offsets[index], block.size):
                data = self._read_from(handle.descriptor, index)
            self._learn(index, handle.identity, is_good=data is not None, may_be_late=True)
            tick(0)

    # ----------------------------------------------------------------------------- writing

    def write(self, index: int, data: bytes | memoryview) -> None:
        """Put a block that was verified at its place, for it to be read from now on.

        Raises:
            StoreError: the disk does not take it.
        """
        if self._is_whole or self._states[index] == GOOD:
            return
        try:
            handle = self._writer()
            if handle is not None:
                write_at(handle.descriptor, data, self._offsets[index])
                self._learn(index, handle.identity, is_good=True)
        except OSError as error:
            raise StoreError(f"cannot write {self._part}: {error}") from None

    def _writer(self) -> Handle | None:
        """The part, made if there is none; None if the content is whole by now."""
        handle = self._handle
        if handle is not None and handle.is_writable and handle.identity == self._identity:
            return handle
        with self._lock:
            self._refresh()
            return None if self._is_whole else self._open()

    def _open(self) -> Handle:
        made = False
        try:
            handle = self._opened(self._part, os.O_RDWR)
        except FileNotFoundError:
            # Not exclusively: another process may just have made it, which loses nothing.
            handle, made = self._opened(self._part, os.O_RDWR | os.O_CREAT), True
        if os.fstat(handle.descriptor).st_size != self.size:
            os.ftruncate(handle.descriptor, self.size)
        if made or self._is_whole or handle.identity != self._identity:
            self._be(UNKNOWN, handle.identity)
        return handle

    def sync(self) -> None:
        """What was written to the part is on the disk now, if its file is open.

        Raises:
            StoreError: the disk does not take it; who completes the file would not hear of it.
        """
        handle = self._handle
        if handle is None or not handle.is_writable:
            return
        try:
            os.fdatasync(handle.descriptor)
        except OSError as error:
            raise self._sync_failed(error) from None

    def _sync_failed(self, error: OSError) -> StoreError:
        with self._lock:
            self._be(UNKNOWN, self._identity)  # who knows what a failed sync has kept
        return StoreError(f"cannot write {self._part}: {error}")

    def complete(self) -> bool:
        """Give it its place among the files if every block is here.

        Raises:
            StoreError: the disk does not take it.
        """
        self.refresh()
        if self._is_whole:
            return True
        if self.missing():
            self.settle()
            if self.missing():
                return False
        try:
            handle = self._writer()
            if handle is None:
                return True
            os.fsync(handle.descriptor)  # before the name, or a power cut could leave holes
            os.fchmod(handle.descriptor, READ_ONLY)
            with self._claims.adding(), self._lock:  # in this order, as sweeps do
                return self._promote(handle.identity)
        except OSError as error:
            raise self._sync_failed(error) from None
        finally:
            self.close()
            self._handles.closed(self)

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
