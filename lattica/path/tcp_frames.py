"""Datagrams in a stream: two bytes of length, big-endian, before each. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

from lattica.errors import PathError

PREFIX = 2  # bytes
MAX_FRAME = 61_440  # bytes of a datagram
MAX_FIRST = 16_384  # bytes of the first one, a handshake's: so text is not taken for a length
_MAX_PARTS = 1024  # in one send: what Linux allows
_MAX_SEND = 1024 * 1024  # bytes in one send, about; more would only be listed in vain


class FrameError(PathError):
    """The other end of a TCP connection does not speak in frames."""


class FrameReader:
    """Cuts what arrives into datagrams, however it was chunked."""

    def __init__(self) -> None:
        self._rest = b""
        self._limit = MAX_FIRST

    @property
    def held(self) -> int:
        """Bytes of a frame that is not complete."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """The datagrams that `data` completes, in order.

        Raises:
            FrameError: an empty frame, or one that is too large.
        """
        if self._rest:
            data = self._rest + data
        frames, start, size = [], 0, len(data)
        while size - start >= PREFIX:
            length = data[start] << 8 | data[start + 1]
            if not 0 < length <= self._limit:
                raise FrameError(f"a frame of {length} bytes; 1 to {self._limit} are allowed")
            end = start + PREFIX + length
            if end > size:
                break
            frames.append(data[start + PREFIX : end])
            start = end
            self._limit = MAX_FRAME
        self._rest = data[start:]
        return frames


class FrameWriter:
    """A bounded queue of frames that leaves in pieces of any size."""

    def __init__(self, limit: int) -> None:
        """`limit`, in bytes, is what may wait."""
        self._limit = limit
        self._parts: deque[bytes | memoryview] = deque()  # prefix, contents, prefix, …
        self.size = 0

    def add(self, datagrams: Sequence[bytes]) -> int:
        """Queue datagrams; how many of the last had no room, or do not fit a frame."""
        dropped = 0
        for datagram in datagrams:
            length = len(datagram)
            if self.size + PREFIX + length > self._limit or not 0 < length <= MAX_FRAME:
                dropped += 1
                continue
            self._parts.append(length.to_bytes(PREFIX, "big"))
            self._parts.append(datagram)
            self.size += PREFIX + length
        return dropped

    def parts(self) -> list[bytes | memoryview]:
        """What to send next, for one system call."""
        size, chosen = 0, []
        for part in islice(self._parts, _MAX_PARTS):
            chosen.append(part)
            size += len(part)
            if size >= _MAX_SEND:
                break
        return chosen

    def sent(self, size: int) -> None:
        """So many bytes of `parts` have left."""
        self.size -= size
        parts = self._parts
        while size:
            first = parts.popleft()
            if size < len(first):
                parts.appendleft(memoryview(first)[size:])
                return
            size -= len(first)
