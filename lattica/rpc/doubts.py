"""For whoever can go elsewhere: not to wait for a peer of which nothing is heard any more.

A link to another machine outlives a path that is dark for seconds, and so do the calls on it. Work
that another peer can do need not wait for that: here it is told, sooner than by the link.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from lattica.errors import CallLostError
from lattica.identity.keys import PeerId
from lattica.link.interface import Links
from lattica.link.supervision import PeerEvent, PeerState


class Doubts:
    """Gives up calls to peers that stay suspect. Made on the running event loop."""

    def __init__(self, links: Links, patience: float) -> None:
        """`patience` is how long, in seconds, a peer may be suspect."""
        self._links = links
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._waits: dict[PeerId, dict[anyio.CancelScope, None]] = {}
        self._timers: dict[PeerId, asyncio.TimerHandle] = {}
        self._unwatch = links.watch(self._changed)

    def __enter__(self) -> Doubts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Doubt nobody any more."""
        self._unwatch()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    @contextmanager
    def waiting(self, peer: PeerId) -> Iterator[None]:
        """Around calls to a peer: they are cancelled when it has been suspect for too long.

        Raises:
            CallLostError: it has. The call may have run, and is cancelled there if it still runs.
        """
        scope = anyio.CancelScope()
        waits = self._waits.setdefault(peer, {})
        waits[scope] = None
        if len(waits) == 1 and self._links.state(peer) is PeerState.SUSPECT:
            self._arm(peer)
        try:
            with scope:
                yield
        finally:
            del waits[scope]
            if not waits:
                self._waits.pop(peer, None)
                self._disarm(peer)
        if scope.cancelled_caught:
            raise CallLostError(
                f"nothing is heard of {peer.short} any more; the call may have run",
                may_have_run=True,
            )

    # ------------------------------------------------------------------ inside

    def _changed(self, event: PeerEvent) -> None:
        self._disarm(event.peer)
        if event.state is PeerState.SUSPECT and event.peer in self._waits:
            self._arm(event.peer)

    def _arm(self, peer: PeerId) -> None:
        if peer not in self._timers:
            self._timers[peer] = self._loop.call_later(self._patience, self._give_up, peer)

    def _disarm(self, peer: PeerId) -> None:
        timer = self._timers.pop(peer, None)
        if timer is not None:
            timer.cancel()

    def _give_up(self, peer: PeerId) -> None:
        self._timers.pop(peer, None)
        for scope in tuple(self._waits.get(peer, ())):
            scope.cancel()
