"""What a worker prints: in a bounded file, and its lines for whoever listens."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

_READ = 64 * 1024
_MAX_LINE = 8 * 1024
_TAIL = 20


class WorkerLog:
    """Reads the other end of a worker's standard output and error."""

    def __init__(
        self, path: Path, limit: int, on_line: Callable[[str], None] | None = None
    ) -> None:
        """At `limit` bytes the file becomes `<path>.1` and a new one begins."""
        self._path = path
        self.directory = path.parent  # of the worker; set when it starts
        self._limit = limit
        self._on_line = on_line
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self._file = path.open("ab", buffering=0)
        self._size = self._file.tell()
        self._partial = b""
        self.dropped = 0  # bytes that could not be written to the file
        self.tail: deque[str] = deque(maxlen=_TAIL)  # the last lines
        asyncio.get_running_loop().add_reader(self._read_fd, self._on_readable)

    def close_write_end(self) -> None:
        """The worker has its own by now."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def close(self) -> None:
        """Take what is still there, and stop."""
        if self._read_fd < 0:
            return
        self.close_write_end()
        while self._on_readable():
            pass
        if self._partial:
            self._line(self._partial)
        asyncio.get_running_loop().remove_reader(self._read_fd)
        os.close(self._read_fd)
        self._read_fd = -1
        self._file.close()

    def _on_readable(self) -> bool:
        try:
            data = os.read(self._read_fd, _READ)
        except BlockingIOError:
            return False
        if not data:
            asyncio.get_running_loop().remove_reader(self._read_fd)
            return False
        self._write(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._partial) > _MAX_LINE:
            self._line(self._partial)
            self._partial = b""
        return True

    def _write(self, data: bytes) -> None:
        try:
            self._append(data)
        except OSError:  # the disk is full, or the directory gone: the lines are still told
            self.dropped += len(data)

    def _append(self, data: bytes) -> None:
        if self._size + len(data) > self._limit:
            self._file.close()
            os.replace(self._path, self._path.with_name(self._path.name + ".1"))
            self._file = self._path.open("ab", buffering=0)
            self._size = 0
        self._file.write(data)
        self._size += len(data)

    def _line(self, line: bytes) -> None:
        text = line[:_MAX_LINE].decode(errors="replace")
        self.tail.append(text)
        if self._on_line is not None:
            self._on_line(text)
