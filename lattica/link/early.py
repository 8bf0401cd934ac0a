"""What arrives on a link's streams before both ends have proven themselves."""

from __future__ import annotations

from collections.abc import Callable

from lattica.link.interface import LinkHandler

EARLY_LIMIT = 1024 * 1024  # bytes kept for streams that precede the end of the proof
_OVERHEAD = 64  # bytes counted for each event, so that empty ones are bounded too


class EarlyEvents:
    """Events for the handler that the link does not have yet, in order."""

    __slots__ = ("_events", "_size")

    def __init__(self) -> None:
        self._events: list[Callable[[LinkHandler], None]] = []
        self._size = 0

    def add(self, event: Callable[[LinkHandler], None], size: int) -> bool:
        """Keep an event of `size` bytes; False if there are too many."""
        self._events.append(event)
        self._size += size + _OVERHEAD
        return self._size <= EARLY_LIMIT

    def take(self) -> list[Callable[[LinkHandler], None]]:
        """All events, which are then forgotten."""
        events, self._events = self._events, []
        return events
