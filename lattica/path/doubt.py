"""When is a way that carries packets to be asked whether it still does? No I/O."""

from __future__ import annotations

from lattica.path.mtu import NEVER
from lattica.path.way import Way, WayTimers


class Doubt:
    """Grows while packets leave on the way in use and nothing shows that they arrive.

    Attributes:
        is_used: packets have left since the way in use was last confirmed.
    """

    def __init__(self, timers: WayTimers, now: float) -> None:
        self._timers = timers
        self.is_used = False
        self._used_since = NEVER  # the first look at the clock that found it so
        self._looked = now

    def rest(self) -> None:
        """All that was sent has arrived, or there is a new way."""
        self.is_used = False
        self._used_since = NEVER

    def grows(self, current: Way, now: float, heard: float, *, is_only: bool) -> bool:
        """Look at the clock; whether to ask `current` now.

        `heard` is when the link last heard of the other end. `is_only`: there is no other way.
        """
        self._looked = now
        self._used_since = min(self._used_since, now)
        if is_only and (heard > self._used_since or now - heard < self._timers.silence):
            # What is heard has answered what was sent, for both took the only way there is. (And
            # what has left since is looked at again when more does, or the link asks for a beat.)
            self.rest()
            return False
        unsure = now - current.answered
        silence = min(unsure, now - heard, now - self._used_since)
        return silence >= self._timers.silence or (
            not is_only and unsure >= self._timers.confirm_every
        )

    def due(self, current: Way) -> float:
        """When to look again."""
        if not self.is_used or current.flying:
            return NEVER
        return max(current.answered + self._timers.silence, self._looked + self._timers.try_fast)
