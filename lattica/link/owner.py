"""What a link needs of the endpoint that it belongs to."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Protocol

from lattica.clock import Clock
from lattica.config import LinkConfig
from lattica.errors import LinkError
from lattica.identity.grants import Membership
from lattica.identity.keys import Identity
from lattica.path.interface import Path

if TYPE_CHECKING:
    from lattica.link.quic_link import QuicLink


class LinkOwner(Protocol):
    """Implemented by `lattica.link.endpoint.Endpoint`."""

    identity: Identity
    membership: Membership
    name: str
    config: LinkConfig
    clock: Clock
    path: Path
    counters: Counter[str]

    def link_dirty(self, link: QuicLink) -> None:
        """Something waits to be sent: flush at the end of the loop's turn."""
        ...

    def link_keyed(self, link: QuicLink) -> None:
        """Probes of the path may come with the link's tag."""
        ...

    def link_proven(self, link: QuicLink) -> None:
        """The other end's Hello holds."""
        ...

    def link_confirmed(self, link: QuicLink) -> None:
        """The dialer has accepted this end."""
        ...

    def link_due(self, link: QuicLink, at: float) -> None:
        """The link wants a `check` at that time, sooner than it had said."""
        ...

    def link_suspect(self, link: QuicLink, reason: str) -> None:
        """The other end of an open link gives no sign of life."""
        ...

    def link_heard(self, link: QuicLink) -> None:
        """A suspect link has given one."""
        ...

    def link_draining(self, link: QuicLink, error: LinkError) -> None:
        """An end of an open link is going away: it is not for anything new any more."""
        ...

    def link_ended(self, link: QuicLink, last_words: list[bytes]) -> None:
        """The link is closed; `last_words` tell the other end, should it go on."""
        ...

    def connection_id_added(self, link: QuicLink, connection_id: bytes) -> None:
        """See `EngineSink`."""
        ...

    def connection_id_removed(self, link: QuicLink, connection_id: bytes) -> None:
        """See `EngineSink`."""
        ...
