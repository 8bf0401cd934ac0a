"""When the links of an endpoint get their turn: to send, once in a turn of the loop, and to look
at their clocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lattica.link.quic_link import QuicLink
from lattica.link.schedule import Schedule
from lattica.link.table import LinkTable

TICK = 0.05  # seconds between looks at the clocks, at most
STALL = 0.1  # seconds that a tick is late, from which on links are told


class Turns:
    """Times in seconds of the event loop's clock."""

    def __init__(self, links: LinkTable, heartbeat: float, ticked: Callable[[float], None]) -> None:
        """`ticked(now)` is called once the links have looked at their clocks."""
        self._links = links
        self._every = min(TICK, heartbeat / 4)
        self._ticked = ticked
        self._schedule = Schedule(self._every)
        self._dirty: dict[QuicLink, None] = {}
        self._is_flush_due = False
        self._handle: asyncio.TimerHandle | None = None
        self._due = 0.0

    def start(self) -> None:
        """Begin to look at the clocks."""
        self._loop = asyncio.get_running_loop()
        self._plan()

    def stop(self) -> None:
        """Look at no clocks any more."""
        if self._handle is not None:
            self._handle.cancel()

    def add(self, link: QuicLink) -> None:
        """A link is there: it looks at its clocks with the next tick."""
        self._schedule.set(link, self._loop.time())

    def drop(self, link: QuicLink) -> None:
        """A link has ended."""
        self._schedule.drop(link)
        self._dirty.pop(link, None)

    def dirty(self, link: QuicLink) -> None:
        """See `LinkOwner.link_dirty`."""
        self._dirty[link] = None
        if not self._is_flush_due:
            # Tasks that this turn has woken come first: what they write shares the packets.
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def due(self, link: QuicLink, at: float) -> None:
        """See `LinkOwner.link_due`."""
        self._schedule.hasten(link, at)

    def _flush(self) -> None:
        self._is_flush_due = False
        now = self._loop.time()
        dirty, self._dirty = self._dirty, {}
        for link in dirty:
            link.flush(now)

    def _plan(self) -> None:
        self._due = self._loop.time() + self._every
        self._handle = self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        late = now - self._due
        if late > STALL:
            for link in self._links:
                link.vitals.on_stall(late, now)
        for link in self._schedule.pop(now):
            due = link.vitals.check(now)
            if link in self._links:
                self._schedule.set(link, due)
        self._ticked(now)
        self._plan()
