"""A call of the event loop at a time that keeps moving."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

GRANULARITY = 0.001  # seconds; RFC 9002 §6.1.2


class Alarm:
    """Rings at the earliest time it was set to since it rang last, so now and then too early.

    Times mostly move later, with every packet. Leaving the timer alone then is cheaper than
    moving it: who is called looks at the clock and sets the alarm anew.
    """

    __slots__ = ("_at", "_call", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        self._loop = loop
        self._call = call
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0

    def set(self, at: float | None) -> None:
        """Ring at `at`, in seconds of the loop's clock; None: nothing is to be done."""
        if at is None:
            return
        if self._timer is not None:
            if self._at <= at:
                return
            self._timer.cancel()
        # Rounding may leave a time due that has just been handled; not in the same instant,
        # which on a virtual clock would never end.
        now = self._loop.time()
        if at <= now:
            at = now + GRANULARITY
        self._at = at
        self._timer = self._loop.call_at(at, self._ring)

    def cancel(self) -> None:
        """Do not ring any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        self._call()
