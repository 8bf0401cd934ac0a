"""Frames on the socket between a host and its worker: a message, and raw buffers beside it.

Sans-IO. A frame is the message's length and the number of buffers (u32 each), the length of
each buffer (u64), the MessagePack message, then the buffers, each at a multiple of 64 bytes
so that arrays in them are aligned.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any, Generic, TypeVar

import msgspec

from lattica.errors import FrameError
from lattica.identity import wire
from lattica.rpc.buffers import Buffer

M = TypeVar("M")

INLINE = 4 * 1024  # bytes; smaller buffers stand in the message itself
MAX_META = 64 * 1024 * 1024  # bytes of one message without its buffers
MAX_BUFFERS = 16 * 1024
_ALIGN = 64
_SCRATCH = 256 * 1024
_HEAD = struct.Struct("<II")


class FrameEncoder:
    """Turns messages into parts to be written in order. Not for several threads at once."""

    def __init__(self, max_frame: int) -> None:
        """`max_frame` is the largest frame in bytes."""
        self._max_frame = max_frame
        self._buffers: list[memoryview] = []
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._hook)

    def encode(self, message: Any) -> list[bytes | memoryview]:
        """The parts of one frame.

        Raises:
            FrameError: the frame would be larger than the limit.
        """
        self._buffers = []
        meta = self._encoder.encode(message)
        if not self._buffers:
            self._check(len(meta), 0)
            return [_HEAD.pack(len(meta), 0) + meta]
        lengths = [view.nbytes for view in self._buffers]
        self._check(len(meta), sum(lengths))
        table = struct.pack(f"<{len(lengths)}Q", *lengths)
        parts: list[bytes | memoryview] = [_HEAD.pack(len(meta), len(lengths)) + table + meta]
        end = len(meta)
        for view in self._buffers:
            parts += [bytes(-end % _ALIGN), view]
            end = _aligned(end) + view.nbytes
        self._buffers = []
        return parts

    def _check(self, meta: int, buffers: int) -> None:
        if meta > MAX_META or len(self._buffers) > MAX_BUFFERS or meta + buffers > self._max_frame:
            raise FrameError(
                f"a message of {meta + buffers} bytes is larger than {self._max_frame} bytes; "
                "pass large data in several parts"
            )

    def _hook(self, value: Any) -> Any:
        if isinstance(value, Buffer):
            if len(value) <= INLINE:
                return bytes(value)
            self._buffers.append(value.data)
            return len(self._buffers) - 1
        return wire.enc_hook(value)


class FrameDecoder(Generic[M]):
    """Turns bytes into messages of one type; large frames are received in place."""

    def __init__(self, kind: Any, max_frame: int) -> None:
        """`kind` is the type of the messages, a union of tagged structs."""
        self._max_frame = max_frame
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(
            kind, dec_hook=self._hook
        )
        self._buffers: list[memoryview] = []
        self._scratch = memoryview(bytearray(_SCRATCH))
        self._start = self._end = 0
        self._large: memoryview | None = None  # the body of a frame that the scratch cannot hold
        self._filled = 0
        self._shape: tuple[int, tuple[int, ...]] = (0, ())

    def get_buffer(self) -> memoryview:
        """Where the next bytes are to be received; never empty."""
        if self._large is not None:
            return self._large[self._filled :]
        return self._scratch[self._end :]

    def received(self, count: int) -> list[M]:
        """Note `count` bytes received into `get_buffer()`; the messages now complete.

        Raises:
            FrameError: the bytes are not frames of this type.
        """
        messages: list[M] = []
        if self._large is not None:
            self._filled += count
            if self._filled == self._large.nbytes:
                body, self._large = self._large, None
                messages.append(self._message(body))
            return messages
        self._end += count
        while self._take(messages):
            pass
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == _SCRATCH:
            rest = bytes(self._scratch[self._start : self._end])
            self._scratch[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return messages

    def _take(self, messages: list[M]) -> bool:
        """Take one frame off the scratch; False when it holds none that is whole."""
        data = self._scratch[self._start : self._end]
        if len(data) < _HEAD.size:
            return False
        meta, count = _HEAD.unpack_from(data)
        if meta > MAX_META or count > MAX_BUFFERS:
            raise FrameError(f"a frame announces {meta} bytes and {count} buffers")
        head = _HEAD.size + 8 * count
        if len(data) < head:
            return False
        lengths = struct.unpack_from(f"<{count}Q", data, _HEAD.size)
        if meta + sum(lengths) > self._max_frame:
            raise FrameError(f"a frame announces {meta + sum(lengths)} bytes")
        self._shape = (meta, lengths)
        size = meta
        for length in lengths:
            size = _aligned(size) + length
        if len(data) >= head + size:
            messages.append(self._message(memoryview(bytes(data[head : head + size]))))
            self._start += head + size
            return True
        if head + size <= _SCRATCH:
            return False
        self._large = _allocate(size)
        self._filled = len(data) - head
        self._large[: self._filled] = data[head:]
        self._start = self._end
        return False

    def _message(self, body: memoryview) -> M:
        meta, lengths = self._shape
        self._buffers, end = [], meta
        for length in lengths:
            start = _aligned(end)
            end = start + length
            self._buffers.append(body[start:end].toreadonly())
        try:
            return self._decoder.decode(body[:meta])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FrameError(f"a frame does not decode: {error}") from None
        finally:
            self._buffers = []

    def _hook(self, kind: type[Any], value: Any) -> Any:
        if kind is not Buffer:
            return wire.dec_hook(kind, value)
        if isinstance(value, bytes):
            return Buffer(value)
        if isinstance(value, int) and 0 <= value < len(self._buffers):
            return Buffer(self._buffers[value])
        raise ValueError("no such buffer in the frame")


def _aligned(offset: int) -> int:
    return offset + -offset % _ALIGN


def _allocate(size: int) -> memoryview:
    # An anonymous map takes memory only as bytes really arrive; an announcement costs nothing.
    return memoryview(mmap.mmap(-1, size))
