"""What is known and under way for one link that Upgrades cares for."""

from __future__ import annotations

import anyio

from lattica.link.quic_link import QuicLink
from lattica.reach.messages import News


class Care:
    """What is known and under way for one link."""

    def __init__(self, link: QuicLink) -> None:
        self.link = link
        self.scope = anyio.CancelScope()
        self.theirs: News | None = None
        self.wake = anyio.Event()
        self.is_punching = False
        self.is_rescuing = False
        self.attempts = 0  # in vain, one after the other

    def hurry(self) -> None:
        self.wake.set()
        self.attempts = 0

    def learn(self, theirs: News) -> None:
        """The other end has told where it is: ways from there may be its own.

        At once, for the way may open before the order to punch arrives, or without one.
        """
        self.theirs = theirs
        if self.link.steering is not None:
            self.link.steering.name((*theirs.addresses, *theirs.report.public, *theirs.hosts))
