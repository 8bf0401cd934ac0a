"""Time as an argument: the system's clock, and one that tests move by hand."""

from __future__ import annotations

import time
from typing import Protocol


def elapsed() -> float:
    """Seconds since an arbitrary start that count also while the machine sleeps, where the
    system can tell (`man 2 clock_gettime`, CLOCK_BOOTTIME)."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


class Clock(Protocol):
    """Where code that must be testable reads the time."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        ...

    def elapsed(self) -> float:
        """Like `monotonic`, on a scale of its own, and going on while the machine sleeps."""
        ...

    def time(self) -> float:
        """Seconds since the Unix epoch, for expiries that other machines read."""
        ...


class SystemClock:
    """The machine's own clock."""

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return time.monotonic()

    def elapsed(self) -> float:
        """See `Clock.elapsed`."""
        return elapsed()

    def time(self) -> float:
        """See `Clock.time`."""
        return time.time()


class ManualClock:
    """A clock that moves only when told to."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = start

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return self._now

    def elapsed(self) -> float:
        """See `Clock.elapsed`."""
        return self._now

    def time(self) -> float:
        """See `Clock.time`."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move on by `seconds`."""
        self._now += seconds
