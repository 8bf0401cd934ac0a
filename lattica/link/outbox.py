"""What a link has been given to send and the QUIC engine has not: control first. No I/O.

An engine sends its streams in turn and has no say about which matters. So it is handed
data streams piece by piece, only as fast as it sends: a control message never waits behind
more than a piece and what is in flight already. Bidirectional streams are control.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Protocol

Chunk = bytes | bytearray | memoryview

PIECE = 64 * 1024  # bytes of data streams handed over at a time, at least,
DATAGRAMS = 4  # and as many datagrams
HEADERS = 64  # bytes of a datagram that are no stream's, about
TURN = 4  # of so many pieces one goes to the stream that has waited longest
LOOK = 32  # streams among which the shortest is looked for
_END = b""


def piece(datagram: int) -> int:
    """Bytes to hand over at a time: whole datagrams, or each piece would end in a small one."""
    payload = datagram - HEADERS
    return max(DATAGRAMS, PIECE // payload) * payload


class Sends(Protocol):
    """The part of an engine that an outbox feeds."""

    def send(self, stream_id: int, data: Chunk, end: bool) -> bool:
        """See `Engine.send`."""
        ...


class _Stream:
    """Chunks of one data stream, in order."""

    __slots__ = ("chunks", "ends", "size")

    def __init__(self) -> None:
        self.chunks: deque[Chunk] = deque()
        self.ends = False
        self.size = 0  # bytes


class Outbox:
    """Queues of one link. Chunks are kept by reference until they are handed over."""

    def __init__(self) -> None:
        self._control: dict[int, list[Chunk]] = {}
        self._control_ends: set[int] = set()
        self._data: dict[int, _Stream] = {}  # the first one is served next
        self._size = 0
        self._piece = 0

    def __len__(self) -> int:
        """Bytes of data streams that wait."""
        return self._size

    @property
    def has_data(self) -> bool:
        """Whether a data stream waits, if only for its end."""
        return bool(self._data)

    def write(self, stream_id: int, chunk: Chunk, *, end: bool) -> None:
        """Queue a chunk."""
        if not stream_id & 2:
            chunks = self._control.get(stream_id)
            if chunks is None:
                self._control[stream_id] = [chunk]
            else:
                chunks.append(chunk)
            if end:
                self._control_ends.add(stream_id)
            return
        stream = self._data.get(stream_id)
        if stream is None:
            stream = self._data[stream_id] = _Stream()
        if chunk:
            stream.chunks.append(chunk)
            stream.size += _nbytes(chunk)
            self._size += _nbytes(chunk)
        if end:
            stream.ends = True

    def drop(self, stream_id: int) -> None:
        """Forget what waits for a stream."""
        self._control.pop(stream_id, None)
        self._control_ends.discard(stream_id)
        stream = self._data.pop(stream_id, None)
        if stream is not None:
            self._size -= stream.size

    def clear(self) -> None:
        """Forget everything."""
        self._control.clear()
        self._control_ends.clear()
        self._data.clear()
        self._size = 0

    def push_control(self, engine: Sends) -> None:
        """Hand over all that is urgent."""
        if not self._control:
            return
        control, self._control = self._control, {}
        for stream_id, chunks in control.items():
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            engine.send(stream_id, data, stream_id in self._control_ends)
        self._control_ends.clear()

    def push_data(self, engine: Sends, room: int = PIECE) -> int:
        """Hand over at most `room` bytes, from one stream after another; how many they were."""
        left = room
        while self._data and left > 0:
            stream_id, stream = self._next()
            chunks = stream.chunks
            while chunks and left > 0:
                chunk = chunks.popleft()
                size = _nbytes(chunk)
                if size > left:
                    view = memoryview(chunk)
                    chunks.appendleft(view[left:])
                    chunk, size = view[:left], left
                left -= size
                stream.size -= size
                self._size -= size
                engine.send(stream_id, chunk, stream.ends and not chunks)
                if stream.ends and not chunks:
                    stream.ends = False  # told
            del self._data[stream_id]
            if chunks:
                self._data[stream_id] = stream  # behind the others
            elif stream.ends:
                engine.send(stream_id, _END, True)
        return room - left

    def _next(self) -> tuple[int, _Stream]:
        """The stream to take a piece of.

        Streams that can be finished are, the shortest first: if bodies of one size shared the
        line, all would be late, and their answers would then meet on an empty way back. Every
        so often it is the turn of whoever has waited longest.
        """
        found = next(iter(self._data.items()))
        self._piece += 1
        if self._piece % TURN:
            least = -1
            for each in islice(self._data.items(), LOOK):
                stream = each[1]
                if stream.ends and (least < 0 or stream.size < least):
                    found, least = each, stream.size
        return found


def _nbytes(chunk: Chunk) -> int:
    return chunk.nbytes if type(chunk) is memoryview else len(chunk)
