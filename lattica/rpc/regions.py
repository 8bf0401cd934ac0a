"""Memory that fills with what arrives, and is handed out without a copy."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

from lattica.config import MIB

MAPPED = 1 * MIB  # bytes from which a region is mapped: the kernel backs what is written only


class Region:
    """`size` bytes that arrive in order. What was announced costs no memory until it comes."""

    __slots__ = ("_data", "_size", "_view", "filled")

    def __init__(self, size: int) -> None:
        self._size = size
        self._data = bytearray()
        self._view: memoryview | None = None
        self.filled = 0

    @property
    def missing(self) -> int:
        """Bytes to come."""
        return self._size - self.filled

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes, no more than are missing. Raises OSError: no memory is left."""
        if self._size < MAPPED:
            self._data += data
        else:
            if self._view is None:
                self._view = memoryview(mmap.mmap(-1, self._size))
            self._view[self.filled : self.filled + len(data)] = data
        self.filled += len(data)

    def views(self, sizes: Sequence[int]) -> list[memoryview]:
        """The region cut into parts; each keeps all of it alive."""
        whole = memoryview(self._data) if self._view is None else self._view
        at, parts = 0, []
        for size in sizes:
            parts.append(whole[at : at + size])
            at += size
        return parts
