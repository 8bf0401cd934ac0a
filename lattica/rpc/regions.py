"""Memory that fills with what arrives, and is handed out without a copy."""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections.abc import Sequence

from lattica.config import MIB

MAPPED = 1 * MIB  # bytes from which a region is mapped: the kernel backs what is written only
KEPT = 16 * MIB  # of regions that nobody uses any more, for those that come


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
                self._view = _mappings.view(self._size)
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


class Mappings:
    """Mapped memory, used again once no view of it is left: fresh pages cost more than a copy.

    Views may go in any thread.
    """

    def __init__(self, limit: int = KEPT) -> None:
        """Keeps at most `limit` bytes that are not in use."""
        self._limit = limit
        self._free: list[mmap.mmap] = []

    @property
    def kept(self) -> int:
        """Bytes that are kept and not in use."""
        return sum(len(mapping) for mapping in list(self._free))

    def view(self, size: int) -> memoryview:
        """So many bytes, whatever is in them. Raises OSError."""
        mapping = self._take(size)
        # What views refer to, and what therefore goes with the last of them.
        owner = (ctypes.c_ubyte * size).from_buffer(mapping)
        weakref.finalize(owner, self._return, mapping).atexit = False
        return memoryview(owner).cast("B")

    def _take(self, size: int) -> mmap.mmap:
        wanted = -(-size // MIB) * MIB
        while self._free:
            try:
                mapping = self._free.pop()
            except IndexError:
                break
            if len(mapping) == wanted:
                return mapping  # others make room for it: those in use are mostly of one size
        return mmap.mmap(-1, wanted)

    def _return(self, mapping: mmap.mmap) -> None:
        if self.kept + len(mapping) <= self._limit:
            self._free.append(mapping)


_mappings = Mappings()
