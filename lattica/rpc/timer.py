"""One event-loop timer for the deadlines of all calls of one `Rpc`."""

from __future__ import annotations

import asyncio
import math
from typing import Protocol

from lattica.rpc.deadlines import Deadlines


class Expires(Protocol):
    """What has a deadline."""

    def expire(self) -> None:
        """The deadline has passed."""
        ...


class Timer:
    """Calls `expire()` of what is due, at most a few milliseconds late."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadlines: Deadlines[Expires] = Deadlines()
        self._handle: asyncio.TimerHandle | None = None
        self._armed = math.inf
        self.now = self._loop.time  # seconds

    def add(self, key: Expires, when: float) -> int:
        """Call `key.expire()` at `when`; the result is for `discard`."""
        slot = self._deadlines.add(key, when)
        if when < self._armed:
            self._arm()
        return slot

    def discard(self, slot: int, key: Expires) -> None:
        """Forget a deadline."""
        self._deadlines.discard(slot, key)

    def close(self) -> None:
        """Fire no more."""
        if self._handle is not None:
            self._handle.cancel()

    def _arm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        when = self._deadlines.next()
        self._armed = math.inf if when is None else when
        if when is not None:
            self._handle = self._loop.call_at(when, self._fire)

    def _fire(self) -> None:
        for key in self._deadlines.due(self._loop.time()):
            key.expire()
        self._arm()
