"""How often may places be tried only because the other end was seen there? No I/O."""

from __future__ import annotations

from lattica.path.way import WayTimers


class Following:
    """A few at once, and then one now and again.

    Where each remote sees another port, every probe to a new one opens a new one here: two such
    ends that let strangers in would chase each other's ports for ever.
    """

    def __init__(self, timers: WayTimers, now: float) -> None:
        self._burst = float(timers.follow_burst)
        self._every = timers.follow_every
        self._left = self._burst
        self._at = now

    def take(self, now: float) -> bool:
        """Whether one more may be tried now."""
        self._left = min(self._burst, self._left + (now - self._at) / self._every)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
