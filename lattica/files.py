"""Files that are replaced as a whole, or not at all."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path


def replace(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file of mode 0600, and its folder if there is none.

    Who reads meanwhile, and who reads after a crash, finds the old bytes or the new ones. With
    `durable` the new ones are on the disk when this returns, which may take long on a busy
    one: so not on an event loop. Without, a loss of power may bring the old ones back.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


class Snapshots:
    """A file that several threads replace with newer and newer states of one thing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._written = -1

    def write(self, state: Callable[[], bytes], version: int) -> None:
        """Replace the file durably, unless a higher version is there: a thread may be late.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            if version > self._written:
                replace(self.path, state())
                self._written = version


def _sync_folder(folder: Path) -> None:
    # The new name is an entry of the folder, which is another thing to write (man 2 fsync).
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
