"""Which of two links between the same peers stays. No I/O.

Two peers that dial each other at once end with one link: the lower PeerId's dial wins.
And a peer that dials although a link to it is up has lost that link (it restarted, say),
unless the old one shows a sign of life: then the dial was late, and is refused.
"""

from __future__ import annotations

from enum import Enum

from lattica.identity.keys import PeerId
from lattica.link.quic_link import QuicLink

PATIENCE = 0.4  # seconds an old link has to answer before a new one replaces it
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
        self._probed: QuicLink | None = None
        self._probed_at = now

    def rule(
        self, local: PeerId, existing: QuicLink | None, *, is_dialling: bool, now: float
    ) -> Ruling:
        """Decide, given the open link to the same peer, if any, and whether we dial it."""
        if existing is not None:
            if self._probed is not existing:
                existing.probe()
                self._probed, self._probed_at = existing, now
            if existing.liveness.heard > self._probed_at:
                return Ruling.REFUSE
            patience = max(PATIENCE, 3 * existing.rtt)
            return Ruling.REPLACE if now - self._probed_at >= patience else Ruling.WAIT
        if is_dialling and local < self.link.remote.peer and now - self.since < self._patience:
            return Ruling.WAIT
        return Ruling.ANSWER


def stays(link: QuicLink, other: QuicLink) -> bool:
    """Whether `link` stays where two to one peer are open: the lower PeerId's dial does."""
    lower_is_local = link.local < link.remote.peer
    if link.is_dialer == other.is_dialer:
        return True  # the newer one
    return link.is_dialer == lower_is_local
