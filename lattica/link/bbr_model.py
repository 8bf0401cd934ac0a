"""What BBR believes of a path: its bandwidth, its delay, and how bursty its answers are.

Sans-IO parts of `lattica.link.bbr`. Sizes are bytes, rates bytes/s, times seconds. Names and
constants follow draft-ietf-ccwg-bbr.
"""

from __future__ import annotations

import math

MIN_RTT_FILTER = 10.0  # a minimum is believed for so long
PROBE_RTT_INTERVAL = 5.0  # a minimum that was not seen again for so long is looked for
AGGREGATION_ROUNDS = 5  # half of the filter's length
BETA = 0.7  # what is left of a bound after too much loss
LOSS_THRESHOLD = 0.02  # of a flight
LOSS_SLACK = 2  # packets: below a hundred in flight, two percent is no number


def is_too_much(lost: int, in_flight: int, datagram: int) -> bool:
    """Whether the loss in a flight says that the path is full.

    The draft takes any loss above the threshold; a flight of twenty packets would then yield
    to every single one. Two packets are always forgiven.
    """
    return lost > in_flight * LOSS_THRESHOLD + LOSS_SLACK * datagram


class MaxBandwidth:
    """The largest rate in the running probe cycle and the one before."""

    def __init__(self) -> None:
        self.value = 0.0
        self._before = self._now = 0.0

    def update(self, rate: float) -> None:
        """A sample that counts."""
        if rate > self._now:
            self._now = rate
            self.value = max(self._before, rate)

    def advance(self) -> None:
        """A probe cycle is over. One without a sample changes nothing."""
        if self._now:
            self._before, self._now = self._now, 0.0
            self.value = self._before


class MinRtt:
    """The smallest round-trip time, and whether it is time to look for it again."""

    def __init__(self) -> None:
        self.value = math.inf
        self._at = 0.0
        self._recent = math.inf  # the one to be confirmed every five seconds
        self._recent_at = 0.0

    def update(self, rtt: float, now: float) -> bool:
        """Take a sample; whether the path's delay needs to be looked for."""
        expired = now > self._recent_at + PROBE_RTT_INTERVAL and self._recent < math.inf
        if rtt <= self._recent or expired:
            self._recent, self._recent_at = rtt, now
        if self._recent <= self.value or now > self._at + MIN_RTT_FILTER:
            self.value, self._at = self._recent, self._recent_at
        return expired

    def confirm(self, now: float) -> None:
        """It was looked for just now."""
        self._recent_at = now


class Aggregation:
    """How much more than the bandwidth allows is acknowledged at once (wifi, late timers)."""

    def __init__(self) -> None:
        self._start = 0.0
        self._acked = 0.0
        self._before = self._now = 0.0
        self._rounds = 0

    @property
    def extra(self) -> float:
        """Bytes, the most in the last rounds."""
        return max(self._before, self._now)

    def update(self, acked: int, bandwidth: float, window: int, now: float) -> None:
        """So much was acknowledged."""
        expected = bandwidth * (now - self._start)
        if self._acked <= expected:
            self._acked, self._start, expected = 0.0, now, 0.0
        self._acked += acked
        self._now = max(self._now, min(self._acked - expected, window))

    def next_round(self) -> None:
        """A round trip is over."""
        self._rounds += 1
        if self._rounds >= AGGREGATION_ROUNDS:
            self._rounds = 0
            self._before, self._now = self._now, 0.0


class FullPipe:
    """Notices that the bandwidth has stopped to grow."""

    def __init__(self) -> None:
        self.is_full = False
        self._best = 0.0
        self._rounds = 0

    def reset(self, rate: float = 0.0) -> None:
        """Look anew, from `rate` on."""
        self.is_full = False
        self._best = rate
        self._rounds = 0

    def on_round(self, rate: float, growth: float, rounds: int) -> bool:
        """A round brought `rate`; so many rounds without that growth mean that it is full."""
        if rate >= self._best * growth:
            self._best = rate
            self._rounds = 0
        else:
            self._rounds += 1
            self.is_full = self.is_full or self._rounds >= rounds
        return self.is_full
