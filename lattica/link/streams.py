"""What the engines' libraries do not keep about streams, or not well. No I/O."""

from __future__ import annotations

from lattica.link.outbox import Chunk

_STEP = 4  # RFC 9000 §2.1: the low two bits name the initiator and the direction


class SeenStreams:
    """Which streams are live, so that late packets of old ones are told.

    Memory is bounded by the streams that may be open at once, not by how many there were.
    """

    def __init__(self, *, is_client: bool) -> None:
        """`is_client` is this end's role."""
        self._their_bit = 1 if is_client else 0
        self._live: set[int] = set()
        self._skipped: set[int] = set()  # of theirs, below the newest, not seen yet
        self._next = {kind | self._their_bit: kind | self._their_bit for kind in (0, 2)}

    def __len__(self) -> int:
        return len(self._live) + len(self._skipped)

    def add(self, stream_id: int) -> None:
        """A stream of ours begins."""
        self._live.add(stream_id)

    def finish(self, stream_id: int) -> None:
        """Both directions of a stream are over."""
        self._live.discard(stream_id)

    def check(self, stream_id: int) -> bool:
        """Whether a frame belongs to a live stream, which may begin with it."""
        if stream_id in self._live:
            return True
        if stream_id & 1 != self._their_bit:
            return False
        kind = stream_id & 3
        following = self._next[kind]
        if stream_id >= following:
            self._skipped.update(range(following, stream_id, _STEP))
            self._next[kind] = stream_id + _STEP
        elif stream_id in self._skipped:
            self._skipped.discard(stream_id)
        else:
            return False
        self._live.add(stream_id)
        return True


class WaitingStream:
    """A stream of ours that may not begin yet, and what is to be done with it then."""

    def __init__(self) -> None:
        self.writes: list[tuple[bytes, bool]] = []
        self.reset: int | None = None
        self.stop: int | None = None


class WaitingStreams:
    """Streams of ours beyond what the other end, or the library, takes at once."""

    def __init__(self) -> None:
        self._by_kind: dict[bool, dict[int, WaitingStream]] = {False: {}, True: {}}
        self._size = 0

    def __len__(self) -> int:
        return sum(map(len, self._by_kind.values()))

    @property
    def size(self) -> int:
        """Bytes that wait with them."""
        return self._size

    def add(self, stream_id: int) -> None:
        """Streams of a kind are added in the order of their ids."""
        self._by_kind[_is_unidirectional(stream_id)][stream_id] = WaitingStream()

    def get(self, stream_id: int) -> WaitingStream | None:
        """The stream, if it waits."""
        return self._by_kind[_is_unidirectional(stream_id)].get(stream_id)

    def write(self, waiting: WaitingStream, data: Chunk, end: bool) -> bool:
        """Keep a copy for later; False if the stream was given up."""
        if waiting.reset is not None:
            return False
        waiting.writes.append((bytes(data), end))
        self._size += len(data)
        return True

    def give_up(self, waiting: WaitingStream, code: int) -> None:
        """Nothing of it needs to be sent but this."""
        self._size -= sum(len(data) for data, _ in waiting.writes)
        waiting.writes.clear()
        waiting.reset = code

    def pop(self, limit: int, *, unidirectional: bool) -> tuple[int, WaitingStream] | None:
        """The next of a kind that may have `limit` streams altogether; None if there is none."""
        kind = self._by_kind[unidirectional]
        stream_id = next(iter(kind), None)
        if stream_id is None or stream_id // _STEP >= limit:
            return None
        waiting = kind.pop(stream_id)
        self._size -= sum(len(data) for data, _ in waiting.writes)
        return stream_id, waiting


def _is_unidirectional(stream_id: int) -> bool:
    return bool(stream_id & 2)
