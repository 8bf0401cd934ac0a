"""Length-prefixed frames: bytes in any chunks go in, whole frames come out."""

from __future__ import annotations

import struct

from lattica.errors import FrameError

PREFIX = 4  # bytes, big-endian length of what follows
_HEADER = struct.Struct(">IBI")  # the length, and MessagePack's head of an array of so many
_HEAD = bytes(_HEADER.size)
_ARRAY_32 = 0xDD


def frame(payload: bytes) -> bytes:
    """One frame around `payload`."""
    return len(payload).to_bytes(PREFIX, "big") + payload


class Batch:
    """Control messages on their way into frames, each an array of the messages of one turn.

    One frame for many messages: the receiver cuts and decodes them in one call of the
    decoder, which costs a third of doing so one by one.
    """

    __slots__ = ("_count", "_sealed", "_target", "buffer")

    def __init__(self, target: int) -> None:
        """`target`: a frame that has reached so many bytes takes no more messages."""
        self._target = target
        self._sealed = bytearray()
        self._count = 0
        self.buffer = bytearray(_HEAD)  # append one message here, then call `added`

    def __len__(self) -> int:
        waiting = len(self.buffer) if self._count else 0
        return len(self._sealed) + waiting

    def added(self) -> bool:
        """One more message is in the buffer. True if that has filled a frame."""
        self._count += 1
        if len(self.buffer) < self._target:
            return False
        self._seal()
        return True

    def take(self) -> bytearray:
        """The frames so far."""
        if self._count:
            if not self._sealed:
                return self._finish()
            self._seal()
        sealed, self._sealed = self._sealed, bytearray()
        return sealed

    def _seal(self) -> None:
        self._sealed += self._finish()

    def _finish(self) -> bytearray:
        out, self.buffer = self.buffer, bytearray(_HEAD)
        _HEADER.pack_into(out, 0, len(out) - PREFIX, _ARRAY_32, self._count)
        self._count = 0
        return out


class FrameReader:
    """Cuts a stream of bytes into frames of 1 to `limit` bytes.

    Never holds more than one incomplete frame.
    """

    __slots__ = ("_limit", "_need", "_rest")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._need = 0  # bytes of `_rest` before it is worth a look: frames may come byte by byte

    @property
    def pending(self) -> int:
        """Bytes of an incomplete frame that have arrived."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes, in order.

        Raises:
            FrameError: a length is zero or above the limit. Nothing is allocated for it.
        """
        if self._rest:
            if (joined := self._joined(data)) is None:
                return []
            data = joined
        frames: list[bytes] = []
        at, end, need = 0, len(data), PREFIX
        while end - at >= PREFIX:
            size = self._size(data, at)
            start = at + PREFIX
            if end - start < size:
                need = PREFIX + size
                break
            at = start + size
            frames.append(data[start:at])
        if at < end:
            self._rest += memoryview(data)[at:]
            self._need = need
        return frames

    def feed_one(self, data: bytes) -> tuple[bytes, bytes] | None:
        """The first frame and the bytes after it, or None while it is incomplete.

        Raises:
            FrameError: see `feed`.
        """
        if self._rest:
            if (joined := self._joined(data)) is None:
                return None
            data = joined
        need = PREFIX
        if len(data) >= PREFIX:
            need += self._size(data, 0)
            if len(data) >= need:
                return data[PREFIX:need], data[need:]
        self._rest += data
        self._need = need
        return None

    def _joined(self, data: bytes) -> bytes | None:
        """What was kept and `data`; None if that is still not enough."""
        self._rest += data
        if len(self._rest) < self._need:
            return None
        whole, self._rest = bytes(self._rest), bytearray()
        return whole

    def _size(self, data: bytes, at: int) -> int:
        size = int.from_bytes(data[at : at + PREFIX], "big")
        if not 0 < size <= self._limit:
            raise FrameError(f"a frame of {size} bytes; 1 to {self._limit} are allowed")
        return size
