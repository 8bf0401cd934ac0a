"""What a peer answers to those who look for a way to it, or through it."""

from __future__ import annotations

from typing import Protocol

from lattica.identity.keys import PeerId
from lattica.reach.messages import News, Opening, Order, Reserved, Seen, SessionId
from lattica.rpc import caller, method

AT_ONCE = 256


class Answers(Protocol):
    """What the service needs of its peer: `lattica.reach.reach.Reach`."""

    def exchanged(self, peer: PeerId, theirs: News) -> News:
        """A linked peer tells where it is; where this one is."""
        ...

    def ordered(self, peer: PeerId, order: Order) -> None:
        """A linked peer calls for a punch, which begins now."""
        ...

    def reserve(self, peer: PeerId) -> Reserved:
        """A linked peer asks to be reachable through this one."""
        ...

    def open_session(self, peer: PeerId, opening: Opening) -> None:
        """A linked peer asks for a way to another."""
        ...

    def seen(self, peer: PeerId, target: PeerId) -> Seen:
        """An end of a session asks where the other one is."""
        ...

    async def knock(self, peer: PeerId) -> None:
        """A linked peer wants to know what its filter lets in."""
        ...

    async def call(self, peer: PeerId) -> None:
        """A linked peer wants to know whether its router still remembers a socket."""
        ...

    def close_session(self, peer: PeerId, session: bytes) -> None:
        """An end of a session needs it no more."""
        ...


class ReachService:
    """Registered as `reach` on every peer."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    @method(max_concurrency=AT_ONCE)
    async def exchange(self, theirs: News) -> News:
        """Tell each other where both ends may be reached."""
        return self._answers.exchanged(caller().peer, theirs)

    @method(max_concurrency=AT_ONCE)
    async def punch(self, order: Order) -> None:
        """Try now, while the caller does.

        Raises:
            BusyError: too many attempts run here.
        """
        self._answers.ordered(caller().peer, order)

    @method(max_concurrency=AT_ONCE)
    async def reserve(self) -> Reserved:
        """Take sessions for the caller for a while; to be renewed.

        Raises:
            RelayError: this peer is no relay, or is busy.
        """
        return self._answers.reserve(caller().peer)

    @method(max_concurrency=AT_ONCE)
    async def open(self, opening: Opening) -> None:
        """Forward the frames of a session between the caller and a peer that has reserved.

        Raises:
            RelayError: the peer has not, or the relay is busy.
        """
        self._answers.open_session(caller().peer, opening)

    @method(max_concurrency=AT_ONCE)
    async def knock(self) -> None:
        """Send to where the caller's packets come from, from another port of this host.

        Raises:
            RelayError: this peer cannot, or was asked a moment ago.
        """
        await self._answers.knock(caller().peer)

    @method(max_concurrency=AT_ONCE)
    async def call(self) -> None:
        """Send to where the caller last knocked from, if that is the host of its link.

        Raises:
            RelayError: it is not, or this peer was asked a moment ago.
        """
        await self._answers.call(caller().peer)

    @method(max_concurrency=AT_ONCE)
    async def seen(self, target: PeerId) -> Seen:
        """Where the relay sees the other end of a session of the caller's.

        Raises:
            RelayError: there is no session between the two.
        """
        return self._answers.seen(caller().peer, target)

    @method(max_concurrency=AT_ONCE)
    async def close(self, session: SessionId) -> None:
        """End a session of the caller's."""
        self._answers.close_session(caller().peer, session)
