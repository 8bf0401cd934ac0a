"""Files that appear whole or not at all, in folders that several processes share."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lattica.errors import StoreError

TRIES = 3
READ_ONLY = 0o444
_FICLONE = 0x40049409  # linux/fs.h

Identity = tuple[int, int]  # of a file, whatever its name: device and inode


class Handle:
    """An open file, closed when nobody refers to it any more: threads may be reading from it."""

    def __init__(self, path: Path, flags: int) -> None:
        """Raises OSError."""
        self.descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
        self.is_writable = bool(flags & os.O_RDWR)
        self.identity = identity(os.fstat(self.descriptor))

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@contextlib.contextmanager
def scratch(folder: Path, ending: str = "") -> Iterator[tuple[BinaryIO, Path]]:
    """A file to write and rename, under a name that nobody else has; deleted if it stays.

    It is locked, so that `clear` of another process leaves it alone.

    Raises:
        StoreError: it is deleted again and again.
    """
    for _ in range(TRIES):
        path = folder / f".{secrets.token_hex(16)}{ending}"
        with path.open("x+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink == 0:
                continue  # cleared by another process before it was locked
            try:
                yield file, path
            finally:
                path.unlink(missing_ok=True)
            return
    raise StoreError(f"cannot write in {folder}: what is new there is deleted again and again")


def clear(folder: Path, pattern: str = "*") -> None:
    """Delete what processes that are no more have left of `scratch`."""
    for path in folder.glob(pattern):
        # Locked: somebody is writing it.
        ignored = (FileNotFoundError, BlockingIOError)
        with contextlib.suppress(*ignored), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)


def put(path: Path, data: bytes | memoryview, folder: Path) -> None:
    """A file with these bytes, written in `folder` first, which is on the same disk.

    Raises:
        StoreError: the disk does not take it.
    """
    try:
        with scratch(folder) as (file, temporary):
            file.write(data)
            sync(file)  # before the name, or a power cut could leave it without content
            os.replace(temporary, path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}") from None


def sync(file: BinaryIO) -> None:
    """Its bytes are on the disk."""
    file.flush()
    os.fsync(file.fileno())


def clone(source: BinaryIO, target: BinaryIO) -> bool:
    """Let an empty file share the bytes of another one; false where the disk cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
    except OSError:
        return False
    return True


def identity(status: os.stat_result) -> Identity:
    """What stays the same when a file is renamed, and differs when it is replaced."""
    return status.st_dev, status.st_ino


def look(path: Path) -> os.stat_result | None:
    """A file's status; None if it is not there."""
    try:
        return path.stat()
    except OSError:
        return None


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """All of it. A disk that fills up takes less, and the next call says why."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def has_data(descriptor: int, offset: int, size: int) -> bool:
    """Whether anything was ever written there; true where the disk cannot tell."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA) < offset + size
    except OSError as error:
        return error.errno != errno.ENXIO  # nothing from there on
