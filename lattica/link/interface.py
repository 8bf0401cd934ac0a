"""What a link is to the layers above, whatever carries it.

A link joins two proven PeerIds and carries QUIC-like streams of bytes: reliable,
ordered within a stream, independent of each other. Everything is called on the event
loop's thread. Two implementations: `lattica.link.endpoint` (QUIC over a path) and
`lattica.link.memory` (in one process, for tests of the layers above).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from lattica.errors import LinkError
from lattica.identity.keys import PeerId
from lattica.link.statistics import LinkStatistics
from lattica.link.supervision import PeerEvent, PeerState


class RemotePeer(msgspec.Struct, frozen=True):
    """What the other end has proven (and, for `name`, merely says) about itself."""

    peer: PeerId
    mesh: PeerId
    scopes: frozenset[str]  # granted by the mesh's authority; empty for a stranger
    name: str
    root: PeerId | None = None  # see `grants.root_of`


class LinkHandler(Protocol):
    """What the layer above does with a link's events."""

    def stream_data(self, stream_id: int, data: bytes, end: bool) -> None:
        """Bytes arrived in order; `end` marks the clean end of the sender's side."""
        ...

    def stream_reset(self, stream_id: int, code: int) -> None:
        """The sender gave the stream up: what arrived so far is not all."""
        ...

    def stream_stopped(self, stream_id: int, code: int) -> None:
        """The receiver of our stream wants no more of it."""
        ...

    def link_lost(self, error: LinkError) -> None:
        """The link is gone. Called exactly once, last."""
        ...


@runtime_checkable
class Drainable(Protocol):
    """A handler that knows what is in flight on its link, so that a drain can wait for it."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is: no call, no stream, nothing that waits to be written."""
        ...


class Link(Protocol):
    """An authenticated, encrypted connection to one peer."""

    @property
    def local(self) -> PeerId:
        """This end."""
        ...

    @property
    def remote(self) -> RemotePeer:
        """The other end, as proven."""
        ...

    @property
    def is_dialer(self) -> bool:
        """Whether this end dialled. Stream ids follow RFC 9000 §2.1 with dialer = client."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether streams can still be written."""
        ...

    @property
    def is_draining(self) -> bool:
        """Whether an end of it is going away: what is in flight goes on, nothing new begins.

        `Links` calls such a link down: it does not find it, and tells its subscribers.
        """
        ...

    @property
    def rtt(self) -> float:
        """Smoothed round-trip time in seconds; 0.0 before the first sample."""
        ...

    @property
    def address(self) -> str:
        """Where packets go now, for people: `host:port`, `memory`."""
        ...

    def statistics(self) -> LinkStatistics:
        """How the link does, for people and for metrics."""
        ...

    def open_stream(self, *, unidirectional: bool) -> int:
        """A new stream's id. Stream 0 is the link's own and never returned."""
        ...

    def write(
        self,
        stream_id: int,
        data: bytes | bytearray | memoryview,
        *,
        end: bool = False,
        lent: bool = False,
    ) -> None:
        """Queue bytes; they leave from the end of the loop's turn on.

        Bidirectional streams are control and go first; the others share what is left. The
        queue is not bounded here: the layer above bounds it by credit. With `lent` the
        data is not copied into it, so it must not change until it is sent.

        Raises:
            LinkLostError: the link is closed.
        """
        ...

    def before_flush(self, write: Callable[[], None]) -> None:
        """Call `write` once, at the end of this turn of the loop, for what is then to be sent.

        Cheaper than `write` where much is queued bit by bit. A closed link does not call.
        """
        ...

    def reset_stream(self, stream_id: int, code: int) -> None:
        """Give up our sending side of a stream."""
        ...

    def stop_stream(self, stream_id: int, code: int) -> None:
        """Ask the sender to stop."""
        ...

    def close(self, reason: str = "") -> None:
        """Close the link; the other end is told the reason. `link_lost` follows on both ends."""
        ...

    async def drain(self, timeout: float, reason: str = "") -> bool:
        """Close the link once nothing is in flight on it, or after `timeout` seconds.

        The other end is told at once, and starts nothing new on it. What a handler that
        is `Drainable` has in flight is waited for, and what has been written until
        it is acknowledged. The result says whether all of it was done in time.
        """
        ...


class Links(Protocol):
    """All links of one peer."""

    @property
    def local(self) -> PeerId:
        """This peer."""
        ...

    def set_acceptor(self, acceptor: Callable[[Link], LinkHandler]) -> None:
        """Say who handles each new link, dialled or accepted. Called once per link, before data."""
        ...

    def current(self) -> Sequence[Link]:
        """The open links."""
        ...

    def find(self, peer: PeerId) -> Link | None:
        """The open link to `peer`, if any."""
        ...

    async def connect(self, peer: PeerId, addresses: Sequence[str] = ()) -> Link:
        """The open link to `peer`, or a new one to any of `addresses` or those learned before.

        Concurrent calls for one peer share one dial.

        Raises:
            UnknownPeerError: no address is known.
            BackoffError: the last dials failed; says when the next attempt is due. An
                address that was not known, or a dial by the peer, resets that.
            UnreachableError: none answered in `LinkConfig.connect_timeout`.
            WrongPeerError, LinkRefusedError, CrossMeshError, SelfDialError, VersionError,
            ProofError: see the classes.
        """
        ...

    def learn(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Remember where a peer may be reached."""
        ...

    def subscribe(self, listener: Callable[[Link, bool], None]) -> Callable[[], None]:
        """Call `listener(link, is_up)` on every change; the result unsubscribes."""
        ...

    def retire(self, reason: str) -> None:
        """Make no new links from now on, and tell those who dial why. Open links stay."""
        ...

    def state(self, peer: PeerId) -> PeerState:
        """How this end stands with `peer`; strangers are down."""
        ...

    def watch(self, listener: Callable[[PeerEvent], None]) -> Callable[[], None]:
        """Call `listener` whenever a peer changes its state; the result unsubscribes."""
        ...
