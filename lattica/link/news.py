"""What the layers above hear of an endpoint's links, and of the peers behind them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from lattica.errors import LinkError
from lattica.link.interface import Link
from lattica.link.peers import Peers
from lattica.link.quic_link import QuicLink

logger = logging.getLogger("lattica.link")


class News:
    """Tells listeners which links come and go, and the supervisor of peers what that means."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._listeners: list[Callable[[Link, bool], None]] = []

    def subscribe(self, listener: Callable[[Link, bool], None]) -> Callable[[], None]:
        """See `Links.subscribe`."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def up(self, link: QuicLink) -> None:
        """A link is open, and in use."""
        peer, supervisor = link.remote.peer, self._peers.supervisor
        self._notify(link, is_up=True)
        if not link.is_dialer:
            supervisor.reset(peer)  # it is there, and it wants to talk
        self._peers.tell(supervisor.up(peer, f"linked over {link.address}", _now()))

    def down(self, link: QuicLink) -> None:
        """A link is for nothing new any more."""
        self._notify(link, is_up=False)

    def lost(self, link: QuicLink, error: LinkError) -> None:
        """And its peer is to be linked with anew, if it is wanted."""
        lost = self._peers.supervisor.lost
        self._peers.tell(lost(link.remote.peer, error, _now(), is_ours=link.is_closed_here))

    def suspect(self, link: QuicLink, reason: str) -> None:
        """The other end of a link in use gives no sign of life."""
        self._peers.tell(self._peers.supervisor.suspect(link.remote.peer, reason, _now()))

    def heard(self, link: QuicLink) -> None:
        """It has given one."""
        self._peers.tell(self._peers.supervisor.heard(link.remote.peer, _now()))

    def _notify(self, link: QuicLink, *, is_up: bool) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(link, is_up)
            except Exception:  # one listener's bug is not the others'
                logger.exception("a listener failed on a link to %s", link.remote.peer.short)


def _now() -> float:
    return asyncio.get_running_loop().time()
