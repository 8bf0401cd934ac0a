"""Deadlines of many short-lived calls: one that ends in time costs a comparison."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

TICK = 0.005  # seconds between two sweeps at least, and so how late a deadline may be noticed


class Sweep:
    """Has its owner look through what it holds when the earliest deadline is due.

    A wheel that knows each deadline cost a tenth of a call, to add it and to take it out
    again; nearly all calls end long before. Here only the earliest is known, and who adds a
    deadline compares it: `if deadline < sweep.armed: sweep.arm(deadline)`. A sweep looks at
    everything once, so they are spaced: never closer than `TICK`, nor than ten times what
    the last one took.
    """

    __slots__ = ("_expire", "_handle", "_loop", "_not_before", "armed")

    def __init__(self, expire: Callable[[float], float]) -> None:
        """`expire(now)` ends what is due and returns the next deadline, inf for none."""
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._not_before = -math.inf
        self.armed = math.inf  # the deadline that the next sweep is for

    def arm(self, deadline: float) -> None:
        """Sweep at `deadline`, seconds on the loop's clock, if not before."""
        if self._handle is not None:
            self._handle.cancel()
        self.armed = deadline
        self._handle = self._loop.call_at(max(deadline, self._not_before), self._sweep)

    def close(self) -> None:
        """Sweep no more."""
        if self._handle is not None:
            self._handle.cancel()
        self.armed = -math.inf

    def _sweep(self) -> None:
        self._handle = None
        self.armed = math.inf
        start = self._loop.time()
        following = self._expire(start)
        end = self._loop.time()
        self._not_before = end + max(TICK, 10 * (end - start))
        if following < self.armed:
            self.arm(following)
