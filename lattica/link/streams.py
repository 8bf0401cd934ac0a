"""Which streams of a connection are live, so that late packets of old ones are told. No I/O."""

from __future__ import annotations

_STEP = 4  # RFC 9000 §2.1: the low two bits name the initiator and the direction


class SeenStreams:
    """Memory is bounded by the streams that may be open at once, not by how many there were."""

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
