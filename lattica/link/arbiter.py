"""Which of two links between the same peers stays. No I/O.

Two peers that dial each other at once end with one link: the lower PeerId's dial wins, if it
comes in time. No end opens a link that the other may still turn down: the lower one first waits
for its own dial; the higher one, once it has answered the lower one's, opens its own only when
that other has come to nothing. So nothing is ever sent on the link that loses.

And a peer that dials although a link to it is up has lost that link (it restarted, say),
unless the old one shows a sign of life: then the dial was late, and is refused.
"""

from __future__ import annotations

from enum import Enum

from lattica.identity.keys import PeerId
from lattica.link.quic_link import QuicLink

PATIENCE = 0.4  # seconds another link has to answer before it counts as dead,
ROUND_TRIPS = 4.0  # and so many of its round trips
PROBE_EVERY = 0.1  # seconds between questions to it, and at least a round trip
INITIAL_RTT = 0.333  # seconds, where nothing is known of it (RFC 9002 §6.2.2)
DIAL_PATIENCE = 1.0  # seconds that our own dial, which would win, is given


class Ruling(Enum):
    """What becomes of a dialer whose proof holds."""

    ANSWER = "answer"
    WAIT = "wait"
    REFUSE = "refuse"  # the other link stays
    REPLACE = "replace"  # the other link is dead: drop it, then answer


class Candidate:
    """A proven dialer that waits for a ruling."""

    def __init__(self, link: QuicLink, now: float, *, patience: float = DIAL_PATIENCE) -> None:
        """`patience` is how long, in seconds, it waits for a dial of ours that would win."""
        self.link = link
        self._patience = patience
        self.since = now
        self._rival: Rival | None = None

    def rule(
        self, local: PeerId, existing: QuicLink | None, *, is_dialling: bool, now: float
    ) -> Ruling:
        """Decide, given the open link to the same peer, if any, and whether we dial it."""
        if existing is not None:
            if self._rival is None or self._rival.link is not existing:
                self._rival = Rival(existing, self.link, now)
            if existing.liveness.heard > self._rival.since:
                return Ruling.REFUSE
            return Ruling.WAIT if self._rival.may_live(now) else Ruling.REPLACE
        if is_dialling and local < self.link.remote.peer and now - self.since < self._patience:
            return Ruling.WAIT
        return Ruling.ANSWER


class Deferred:
    """A dial of ours that the peer has accepted, while the peer's own, which wins, is under way."""

    def __init__(self, link: QuicLink, now: float, *, patience: float) -> None:
        """`patience` is how long, in seconds, it waits for the other at most."""
        self._link = link
        self._until = now + patience
        self._rival: Rival | None = None

    def is_over(self, other: QuicLink | None, now: float) -> bool:
        """Whether to wait no more. `other` is the peer's dial that this end has answered."""
        if other is None or now >= self._until:
            return True
        if self._rival is None or self._rival.link is not other:
            self._rival = Rival(other, self._link, now)
        return not self._rival.may_live(now)


class Rival:
    """Another link to the same peer, asked again and again whether it lives."""

    def __init__(self, link: QuicLink, waiting: QuicLink, now: float) -> None:
        """`waiting` is the link to the same peer that waits for the answer."""
        self.link = link
        self._waiting = waiting
        self.since = now
        self._ask_at = now

    def may_live(self, now: float) -> bool:
        """Whether it has been heard of lately, or still has time to answer."""
        # The other one's is as good: the acceptor of a new link has no sample yet.
        rtt = max(self.link.rtt, self._waiting.rtt) or INITIAL_RTT
        if now >= self._ask_at:
            self.link.vitals.probe()
            self._ask_at = now + max(PROBE_EVERY, rtt)
        silence = now - max(self.since, self.link.liveness.heard)
        return silence < max(PATIENCE, ROUND_TRIPS * rtt)


def stays(link: QuicLink, other: QuicLink) -> bool:
    """Whether `link` stays where two to one peer are open: the lower PeerId's dial does."""
    lower_is_local = link.local < link.remote.peer
    if link.is_dialer == other.is_dialer:
        return True  # the newer one
    return link.is_dialer == lower_is_local
