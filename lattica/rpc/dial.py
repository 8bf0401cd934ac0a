"""Calls that wait for a link, let through in the order they were made."""

from __future__ import annotations

import asyncio
import copy
import logging
import math
from collections import deque
from collections.abc import Callable

from lattica.errors import DeadlineError, LatticaError, LinkError, LinkLostError
from lattica.identity.keys import PeerId
from lattica.link.interface import Link, Links

log = logging.getLogger("lattica.rpc")


class Dial:
    """One attempt to reach a peer, shared by all calls made meanwhile.

    It stays the only way to the peer until the last of them has gone on: a call made
    later must not overtake one that has waited.
    """

    def __init__(
        self, links: Links, peer: PeerId, tasks: asyncio.TaskGroup, idle: Callable[[], None]
    ) -> None:
        """`idle` is called once nobody waits any more."""
        self._links = links
        self._peer = peer
        self._idle = idle
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._outcome: Link | LatticaError | None = None
        self._task = tasks.create_task(self._run())

    def cancel(self) -> None:
        """The Rpc is shutting down."""
        self._task.cancel()
        self._finish(LinkLostError("this peer is shutting down"))

    async def wait(self, deadline: float) -> Link:
        """The link, once dialled. `deadline` is on the event loop's clock, in seconds.

        Raises:
            LinkError: it could not be made.
            DeadlineError: not in time.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        if self._outcome is not None:
            self._next()
        try:
            async with asyncio.timeout_at(None if math.isinf(deadline) else deadline):
                await waiter
        except TimeoutError:
            raise DeadlineError(f"no link to {self._peer.short} in time") from None
        finally:
            self._waiters.remove(waiter)
            # The next one goes on in the loop's next turn, after this call has been sent.
            if self._outcome is not None or not self._waiters:
                self._next()
        outcome = self._outcome
        if isinstance(outcome, LatticaError):
            raise copy.copy(outcome)  # each waiter's own, with its own traceback and notes
        assert outcome is not None
        return outcome

    async def _run(self) -> None:
        try:
            self._finish(await self._links.connect(self._peer))
        except LatticaError as error:
            self._finish(error)
        except Exception as error:
            # A bug below must end these calls, not every handler of this peer.
            log.exception("dialling %s failed", self._peer.short)
            self._finish(LinkError(f"dialling failed: {error!r}"))

    def _finish(self, outcome: Link | LatticaError) -> None:
        if self._outcome is None:
            self._outcome = outcome
            self._next()

    def _next(self) -> None:
        if self._waiters:
            if not self._waiters[0].done():
                self._waiters[0].set_result(None)
        elif self._outcome is not None:
            self._idle()
