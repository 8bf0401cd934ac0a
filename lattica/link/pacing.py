"""Spreads packets over time at a rate, in bursts that a timer can keep up with. Sans-IO."""

from __future__ import annotations

QUANTUM_TIME = 0.001  # seconds: what the event loop's timers can tell apart
MAX_QUANTUM = 64 * 1024  # bytes sent at once, as one segmented send takes
CATCH_UP = 0.025  # seconds of a late timer that are made good
IDLE_BURST = 10  # datagrams that may leave at once after a pause (RFC 9002 §7.7)


class Pacer:
    """A token bucket. Has the methods that aioquic's pacer has, so that it can take its place.

    The bucket is asked before each packet and told of it before its size is known; the exact
    size follows with `sent`. A packet that is not congestion controlled has no `sent` and costs
    nothing once time has moved on.
    """

    def __init__(self, datagram: int) -> None:
        self.datagram = datagram  # bytes of the largest packet
        self.rate = 0.0  # bytes/s; 0.0: not paced
        self._tokens = float(IDLE_BURST * datagram)
        self._unsettled = 0
        self._at = 0.0
        self._is_held = False  # the last answer was "later"

    def set_rate(self, rate: float) -> None:
        """From now on so many bytes/s."""
        self.rate = rate

    def next_send_time(self, now: float) -> float | None:
        """None if a packet may leave now; else when to ask again."""
        rate = self.rate
        if not rate:
            return None
        if now > self._at:
            self._refill(rate, now)
        left = self._tokens - self._unsettled
        if left > 0:
            self._is_held = False
            return None
        self._is_held = True
        quantum = min(max(rate * QUANTUM_TIME, 2 * self.datagram), MAX_QUANTUM)
        return now + (quantum - left) / rate

    def update_after_send(self, now: float) -> None:
        """A packet is being made."""
        self._unsettled += self.datagram

    def sent(self, size: int) -> None:
        """A congestion-controlled packet of so many bytes has left."""
        if self.rate:
            self._tokens -= size
        self._unsettled = 0

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """What aioquic derives from its window. The model's rate governs instead."""

    def _refill(self, rate: float, now: float) -> None:
        tokens = self._tokens + (now - self._at) * rate
        # Who waited for the timer gets what the timer was late for; who had nothing to send
        # gets a burst that any queue on the way takes.
        burst = IDLE_BURST * self.datagram
        most = max(rate * CATCH_UP, burst) if self._is_held else burst
        self._tokens = min(tokens, max(most, self._tokens))
        self._unsettled = 0
        self._at = now
