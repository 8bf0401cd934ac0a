"""The end of a link that leaves: begun once, over when all work is done or time is up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio

from lattica.errors import LinkLostError
from lattica.link.draining import Draining, is_idle
from lattica.link.owner import LinkOwner
from lattica.link.sending import Sending
from lattica.link.upcalls import Upcalls

if TYPE_CHECKING:
    from lattica.link.quic_link import QuicLink


class Leaving:
    """One link's graceful end, from this side. Times in seconds of the event loop's clock."""

    def __init__(
        self, link: QuicLink, owner: LinkOwner, sending: Sending, upcalls: Upcalls
    ) -> None:
        self._link = link
        self._owner = owner
        self._sending = sending
        self._upcalls = upcalls
        self._loop = asyncio.get_running_loop()
        self._draining: Draining | None = None

    @property
    def has_begun(self) -> bool:
        """Whether this end has said that it goes."""
        return self._draining is not None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight, as far as the handler and the engine can tell."""
        return is_idle(self._upcalls.handler) and not self._sending.in_flight()

    async def run(self, timeout: float, reason: str) -> bool:
        """See `Link.drain`."""
        self.begin(timeout, reason)
        if self._draining is None:
            return True
        with anyio.move_on_after(timeout):
            await self._draining.is_over.wait()
        self._link.close(reason)
        return self._draining.is_complete

    def begin(self, timeout: float, reason: str) -> None:
        """Begin what nobody need wait for."""
        link = self._link
        if not link.is_open or self._draining is not None:
            return
        now = self._loop.time()
        link.flush(now)
        if self.is_idle:
            link.close(reason)
            return
        self._draining = Draining(reason, now + timeout)
        link.say_farewell(self._draining)
        self._owner.link_draining(link, LinkLostError(f"closing here: {reason}"))
        self._owner.link_due(link, min(link.liveness.due(now), self._draining.deadline))

    def flushed(self) -> None:
        """The link has sent what waited: that may have been the last."""
        if self._draining is not None and self.is_idle:
            self._loop.call_soon(self._depart)

    def check(self, now: float) -> float:
        """Look at the deadline; when to look again."""
        if self._draining is None:
            return float("inf")
        if self._draining.deadline <= now:
            self._link.close(self._draining.reason)
        return self._draining.deadline

    def finish(self) -> None:
        """The link is closed."""
        if self._draining is not None:
            self._draining.is_over.set()

    def _depart(self) -> None:
        """The end of it, unless something has come up meanwhile."""
        if self._draining is not None and self._link.is_open and self.is_idle:
            self._draining.is_complete = True
            self._link.close(self._draining.reason)
