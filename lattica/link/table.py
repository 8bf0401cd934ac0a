"""The connections of one endpoint, by how far they have come. No I/O."""

from __future__ import annotations

from collections.abc import Iterator

from lattica.identity.keys import PeerId
from lattica.link.quic_link import QuicLink


class LinkTable:
    """Every connection is in it until it has ended; `len` and iteration are over all.

    Attributes:
        open: the links that are for use.
    """

    def __init__(self) -> None:
        self._all: dict[QuicLink, None] = {}
        self._leaving: dict[QuicLink, None] = {}  # open, and being drained by an end
        self.open: dict[PeerId, QuicLink] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[QuicLink]:
        """Over a copy: links end while they are looked at."""
        return iter(tuple(self._all))

    def __contains__(self, link: object) -> bool:
        return link in self._all

    @property
    def unopened(self) -> int:
        """How many are not open yet."""
        return len(self._all) - len(self.open) - len(self._leaving)

    def shown(self, source: str) -> int:
        """How many handshakes are in progress with a source that has shown where it is."""
        return sum(each.has_shown and not each.is_open and each.source == source for each in self)

    def add(self, link: QuicLink) -> None:
        """A connection begins."""
        self._all[link] = None

    def is_in_use(self, link: QuicLink) -> bool:
        """Whether it is the open link to its peer."""
        remote = link.proven
        return remote is not None and self.open.get(remote.peer) is link

    def leave(self, link: QuicLink) -> None:
        """An end of an open link is going away."""
        self._leaving[link] = None

    def take_down(self, link: QuicLink) -> bool:
        """The link is not for use any more; False if it was not."""
        if not self.is_in_use(link):
            return False
        del self.open[link.remote.peer]
        return True

    def drop(self, link: QuicLink) -> None:
        """The connection has ended. An open link is still to be taken down."""
        self._all.pop(link, None)
        self._leaving.pop(link, None)
