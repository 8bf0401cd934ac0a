"""The last words of closed connections, repeated to those who missed them. No I/O.

RFC 9000 §10.2.1: an end that has closed answers further packets with its close, ever
more rarely, for a while. So a lost packet does not turn a reason into a silence.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from lattica.path.interface import VirtualAddress

LINGER = 3.0  # seconds
MAX_CLOSING = 1024


class LastWords(msgspec.Struct):
    """What to say again, to whom, and until when."""

    datagrams: list[bytes]
    address: VirtualAddress
    until: float
    ids: tuple[bytes, ...]
    heard: int = 0


class Closing:
    """The connections closed in the last seconds."""

    def __init__(self) -> None:
        self._by_id: dict[bytes, LastWords] = {}
        self._queue: list[LastWords] = []  # in the order of `until`

    def __len__(self) -> int:
        return len(self._queue)

    def add(
        self, ids: Iterable[bytes], datagrams: list[bytes], address: VirtualAddress, now: float
    ) -> None:
        """A connection has closed. With no `datagrams` its packets are just ignored."""
        if len(self._queue) >= MAX_CLOSING:
            self._forget(self._queue.pop(0))
        words = LastWords(datagrams, address, now + LINGER, tuple(ids))
        self._queue.append(words)
        for connection_id in words.ids:
            self._by_id[connection_id] = words

    def has(self, connection_id: bytes) -> bool:
        """Whether a connection with this id has closed in the last seconds."""
        return connection_id in self._by_id

    def answer(self, connection_id: bytes) -> LastWords | None:
        """What to send for a packet to `connection_id`; None if that is unknown."""
        words = self._by_id.get(connection_id)
        if words is None:
            return None
        words.heard += 1
        # For the 1st, 2nd, 4th, 8th ... packet.
        if words.heard & (words.heard - 1):
            return LastWords([], words.address, words.until, ())
        return words

    def expire(self, now: float) -> None:
        """Forget those whose time is over."""
        while self._queue and self._queue[0].until <= now:
            self._forget(self._queue.pop(0))

    def _forget(self, words: LastWords) -> None:
        for connection_id in words.ids:
            if self._by_id.get(connection_id) is words:
                del self._by_id[connection_id]
