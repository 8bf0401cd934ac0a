"""What becomes of connections whose other end has proven itself: one link to each peer."""

from __future__ import annotations

from typing import Protocol

from lattica.config import LinkConfig
from lattica.errors import LinkError, LinkLostError, LinkRefusedError
from lattica.identity.keys import PeerId
from lattica.link.arbiter import DIAL_PATIENCE, Candidate, Deferred, Ruling, stays
from lattica.link.phase import Phase
from lattica.link.quic_link import QuicLink
from lattica.link.refusals import CloseCode, DuplicateLinkError
from lattica.link.table import LinkTable


class Opener(Protocol):
    """What rulings need of their endpoint."""

    @property
    def local(self) -> PeerId:
        """This peer."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether somebody takes new links."""
        ...

    def is_dialling(self, peer: PeerId) -> bool:
        """Whether a dial to `peer` runs or waits for its turn."""
        ...

    def make_room(self, link: QuicLink) -> LinkError | None:
        """Have a place for a proven dialer; or why there is none."""
        ...

    def open_link(self, link: QuicLink) -> None:
        """Both ends have accepted each other."""
        ...


class Rulings:
    """Accepts or refuses proven peers. Times in seconds of the event loop's clock.

    A dialer is ruled on when its proof holds, and if that cannot be done yet, again
    whenever something has changed (`review`).
    """

    def __init__(self, opener: Opener, links: LinkTable, config: LinkConfig) -> None:
        self._opener = opener
        self._links = links
        self._longest = config.handshake_timeout / 2
        self._patience = min(DIAL_PATIENCE, self._longest)
        self._candidates: dict[QuicLink, Candidate] = {}  # proven dialers, not yet answered
        self._deferred: dict[QuicLink, Deferred] = {}  # dials of ours that may yet lose
        self._retired = ""

    @property
    def retired(self) -> str:
        """Why no new links are made; empty while they are."""
        return self._retired

    def retire(self, reason: str) -> None:
        """Make no new links; who dials is told why. To be followed by a `review`."""
        self._retired = reason

    def proven(self, link: QuicLink, now: float) -> None:
        """The other end's Hello holds."""
        if not link.is_dialer:
            self._candidates[link] = Candidate(link, now, patience=self._patience)
            self._rule(link, now)
        elif link.remote.peer in self._links.open:
            link.refuse(DuplicateLinkError("another link to this peer is up"))
        elif not self._opener.is_ready:
            link.refuse(LinkRefusedError("this peer is not ready"))
        else:
            if self._opener.local > link.remote.peer:
                self._deferred[link] = Deferred(link, now, patience=self._longest)
            self._accept(link, now)

    def confirmed(self, link: QuicLink) -> None:
        """The dialer has accepted this end."""
        if link in self._candidates:
            link.refuse(LinkRefusedError("confirmed before it was answered"))
            return
        existing = self._links.open.get(link.remote.peer)
        if existing is not None:
            loser = existing if stays(link, existing) else link
            loser.refuse(DuplicateLinkError("another link to this peer stays"))
            if loser is link:
                return
        self._open(link)

    def pending(self, peer: PeerId) -> QuicLink | None:
        """The peer's own dial, if it was answered and is about to succeed."""
        for link in self._links:
            if (
                link.phase is Phase.PROVEN
                and not link.is_dialer
                and link.remote.peer == peer
                and link not in self._candidates
            ):
                return link
        return None

    def review(self, now: float) -> None:
        """Rule on all who wait, if that can be done now."""
        for link in tuple(self._candidates):
            self._rule(link, now)
        for link in tuple(self._deferred):
            self._accept(link, now)

    def drop(self, link: QuicLink) -> None:
        """The connection has ended."""
        self._candidates.pop(link, None)
        self._deferred.pop(link, None)

    # ------------------------------------------------------------------ inside

    def _accept(self, link: QuicLink, now: float) -> None:
        """Accept a peer that has accepted our dial, unless its own dial is about to win."""
        deferred = self._deferred.get(link)
        if deferred is not None and not deferred.is_over(self.pending(link.remote.peer), now):
            return
        self._deferred.pop(link, None)
        link.confirm()
        self._open(link)

    def _open(self, link: QuicLink) -> None:
        """Both ends have accepted each other: no other link of theirs will be opened."""
        peer = link.remote.peer
        for other in self._links:
            if other is not link and other.phase is Phase.PROVEN and other.remote.peer == peer:
                other.refuse(DuplicateLinkError("another link to this peer is up"))
        self._opener.open_link(link)

    def _rule(self, link: QuicLink, now: float) -> None:
        """Decide on a proven dialer, if that can be done yet."""
        candidate = self._candidates.get(link)
        if candidate is None:
            return
        if self._retired:
            del self._candidates[link]
            link.refuse(LinkRefusedError(self._retired))
            return
        if not self._opener.is_ready:
            return
        peer = link.remote.peer
        existing = self._links.open.get(peer)
        is_dialling = self._opener.is_dialling(peer)
        ruling = candidate.rule(self._opener.local, existing, is_dialling=is_dialling, now=now)
        if ruling is Ruling.WAIT:
            return
        del self._candidates[link]
        if ruling is Ruling.REFUSE:
            link.refuse(DuplicateLinkError("another link to this peer is up"))
            return
        if ruling is Ruling.REPLACE and existing is not None:
            text = "the peer came back with a new link"
            existing.end(LinkLostError(text), CloseCode.LOST, text)
        error = self._opener.make_room(link)
        if error is not None:
            link.refuse(error)
        else:
            link.answer()
