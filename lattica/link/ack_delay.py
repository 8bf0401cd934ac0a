"""How long the acknowledgement of a lone packet waits for something that goes the same way.

Both engines acknowledge after a millisecond, in a packet of its own, so a call and its answer take
four packets. RFC 9000 §13.2.1 lets a receiver wait as long as it has told that it may (25 ms),
and §13.2.2 asks that two packets are not kept waiting. Calls come one after the other: mostly the
next one takes the acknowledgement along, and two packets in four, with the system calls and the
wake-ups that they cost at both ends, are saved.
"""

from __future__ import annotations

LONGER = 0.010  # seconds that a lone packet waits beside the engine's own millisecond
ALONE = 1  # packets; from the second one on they wait no longer than the engine says


class AckDelay:
    """Counts what arrives while an acknowledgement is owed. Times in seconds. No I/O."""

    __slots__ = ("_at", "_last", "_received", "_since")

    def __init__(self) -> None:
        self._received = 0
        self._last = 0  # how many came with the last wake-up
        self._at = 0.0
        self._since = 0

    def received(self, packets: int) -> None:
        """So many have arrived at once."""
        self._received += packets
        self._last = packets

    def until(self, at: float) -> float:
        """When to send an acknowledgement by itself that the engine wants to send at `at`."""
        if at != self._at:  # it is another, owed since the last wake-up
            self._at = at
            self._since = self._received - self._last
        return at + LONGER if self._received - self._since <= ALONE else at
