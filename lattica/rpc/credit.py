"""How far a sender may be ahead of its receiver: a window that follows the path. Sans-IO.

A stream gets one window a round trip, so over a long fat path the first window is the
limit and not the path. As TCP receivers do, the window doubles when a whole one is taken in
less than four round trips; a slow reader's never grows. All streams of a link share what they
may grow by, and the sender holds the receiver to it: neither end's memory is the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Protocol

from lattica.errors import FrameError

GROWTH = 32 * 1024 * 1024  # bytes that the windows of one link may grow by, together
LARGEST = 16 * 1024 * 1024  # bytes of one window
SHORT = 0.005  # seconds: a window in such a round trip is 200 MB/s; larger ones only cost memory
QUEUE = 0.03  # seconds above the shortest round trip that queues at the two ends may make
_HASTE = 4.0  # round trips: credit takes one, and what was lost before it one or two more


class Delays(Protocol):
    """The round-trip times of a link, in seconds: smoothed, and the shortest."""

    @property
    def rtt(self) -> float: ...
    @property
    def rtt_min(self) -> float: ...


def delay_of(delays: Delays) -> float:
    """What the path itself takes.

    A busy end makes round trips longer, and a larger window fills its queues only; but the
    shortest ever was perhaps another path's.
    """
    is_queue = delays.rtt - delays.rtt_min < QUEUE
    return delays.rtt_min if is_queue else delays.rtt


class Growth:
    """What is left of a link's allowance, for the windows of this end."""

    def __init__(self, left: int = GROWTH) -> None:
        self._left = left

    def take(self, size: int) -> bool:
        """Whether there is so much; it is then gone."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def give(self, size: int) -> None:
        """Return it."""
        self._left += size


class CreditWindow:
    """One stream's window at its receiver."""

    def __init__(self, size: int, growth: Growth) -> None:
        self.size = size
        self._first = size
        self._growth = growth
        self._since = (0, 0.0)  # bytes taken, and when
        self._is_open = True

    def taken(self, total: int, measure: Callable[[], Delays], now: float) -> int:
        """The reader has taken `total` bytes so far; the window now."""
        begun, at = self._since
        if not at:
            self._since = (total, now)
        elif total - begun >= self.size:
            self._since = (total, now)
            rtt = delay_of(measure())
            is_hasty = self._is_open and rtt >= SHORT and now - at < _HASTE * rtt
            if is_hasty and 2 * self.size <= LARGEST and self._growth.take(self.size):
                self.size *= 2
        return self.size

    def close(self) -> None:
        """The stream is over. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._growth.give(self.size - self._first)


class Allowance:
    """What the other end's windows have grown by, as their senders see it."""

    def __init__(self) -> None:
        self._beyond: dict[int, int] = {}

    def check(
        self, stream: int, limit: int, sent: int, window: int, open_streams: Container[int]
    ) -> None:
        """An honest receiver allows a window more than it has, and it has no more than was sent.

        Raises:
            FrameError: it allows more than windows can have grown, so that we would queue
                without bound.
        """
        beyond = limit - sent - window
        if beyond <= 0:
            self._beyond.pop(stream, None)
            return
        if beyond > LARGEST:
            raise FrameError("credit for more than a window ahead")
        self._beyond[stream] = beyond
        if sum(self._beyond.values()) > GROWTH:
            for other in [each for each in self._beyond if each not in open_streams]:
                del self._beyond[other]
            # Twice: a stream that this end has not seen end yet may have passed its part on.
            if sum(self._beyond.values()) > 2 * GROWTH:
                raise FrameError("credit for more than all windows ahead")
