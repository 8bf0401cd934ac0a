"""Links within one process: the in-memory twin of the QUIC endpoint.

Grants are checked as on a real link, so the layers above can be tested for trust.
Bytes are delivered in order after `latency` seconds, on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import anyio

from lattica.clock import Clock, SystemClock
from lattica.config import LinkConfig
from lattica.errors import (
    CrossMeshError,
    LinkError,
    LinkLostError,
    LinkRefusedError,
    SelfDialError,
    UnreachableError,
)
from lattica.identity.grants import Membership, root_of, verify_chain
from lattica.identity.keys import Identity, PeerId
from lattica.link.draining import Draining, is_idle
from lattica.link.interface import Link, LinkHandler, RemotePeer
from lattica.link.peers import Peers
from lattica.link.statistics import LinkStatistics, Meter
from lattica.link.supervision import PeerEvent, PeerState


class MemoryNetwork:
    """Joins the `MemoryLinks` of one process; can cut pairs apart."""

    def __init__(self, *, latency: float = 0.0) -> None:
        """`latency` is the one-way delay in seconds."""
        self.latency = latency
        self.members: dict[PeerId, MemoryLinks] = {}
        self._cut: set[frozenset[PeerId]] = set()

    def partition(self, one: PeerId, other: PeerId) -> None:
        """Break the link of a pair and refuse new ones."""
        self._cut.add(frozenset((one, other)))
        link = self.members[one].find(other)
        if isinstance(link, MemoryLink):
            link.fail(LinkLostError("partitioned"))

    def heal(self, one: PeerId, other: PeerId) -> None:
        """Let a pair connect again."""
        self._cut.discard(frozenset((one, other)))

    def reachable(self, one: PeerId, other: PeerId) -> bool:
        """Whether the pair can connect."""
        here = one in self.members and other in self.members  # who has left dials nobody
        return here and frozenset((one, other)) not in self._cut


class MemoryLink:
    """One end of an in-process link; see `lattica.link.interface.Link`."""

    def __init__(
        self, owner: MemoryLinks, remote: RemotePeer, *, is_dialer: bool, latency: float
    ) -> None:
        self._owner = owner
        self._remote = remote
        self._is_dialer = is_dialer
        self._latency = latency
        self._next = {False: 4 if is_dialer else 1, True: 2 if is_dialer else 3}
        self._open = True
        self._draining: Draining | None = None  # here
        self._is_leaving = False  # the other end
        self._meter = Meter()
        self._born = self._heard = asyncio.get_running_loop().time()
        self._halves: set[tuple[int, bool]] = set()  # streams and whether our side; not over yet
        self._newest = {0: -1, 2: -1}  # the other end's newest streams, of both kinds
        self.other: MemoryLink | None = None
        self.handler: LinkHandler | None = None
        self._under_way: deque[Callable[[], None]] = deque()

    @property
    def local(self) -> PeerId:
        return self._owner.local

    @property
    def remote(self) -> RemotePeer:
        return self._remote

    @property
    def is_dialer(self) -> bool:
        return self._is_dialer

    @property
    def is_open(self) -> bool:
        return self._open

    @property
    def is_draining(self) -> bool:
        return self._draining is not None or self._is_leaving

    @property
    def rtt(self) -> float:
        return 2 * self._latency

    @property
    def address(self) -> str:
        return "memory"

    def statistics(self) -> LinkStatistics:
        """A write counts as a packet: there are no others."""
        now, meter = asyncio.get_running_loop().time(), self._meter
        return LinkStatistics(
            state="closed" if not self._open else "draining" if self.is_draining else "open",
            engine="memory",
            path=self.address,
            rtt=self.rtt,
            rtt_min=self.rtt,
            datagram=0,
            window=0,
            in_flight=0,
            bytes_in=meter.bytes_in,
            bytes_out=meter.bytes_out,
            packets_in=meter.packets_in,
            packets_out=meter.packets_out,
            packets_lost=0,
            streams=len({stream_id for stream_id, _ in self._halves}),
            unsent=0,
            age=now - self._born,
            silence=now - self._heard,
            handshake=self._latency,
        )

    def open_stream(self, *, unidirectional: bool) -> int:
        stream_id = self._next[unidirectional]
        self._next[unidirectional] += 4
        self._halves.add((stream_id, True))
        if not unidirectional:
            self._halves.add((stream_id, False))
        return stream_id

    def write(
        self,
        stream_id: int,
        data: bytes | bytearray | memoryview,
        *,
        end: bool = False,
        lent: bool = False,
    ) -> None:
        if not self._open:
            raise LinkLostError(f"the link to {self._remote.peer.short} is closed")
        if end:
            self._halves.discard((stream_id, True))
        self._deliver("stream_data", stream_id, bytes(data), end)

    def before_flush(self, write: Callable[[], None]) -> None:
        if self._open:
            asyncio.get_running_loop().call_soon(write)

    def reset_stream(self, stream_id: int, code: int) -> None:
        self._halves.discard((stream_id, True))
        self._deliver("stream_reset", stream_id, code)

    def stop_stream(self, stream_id: int, code: int) -> None:
        self._deliver("stream_stopped", stream_id, code)

    def close(self, reason: str = "") -> None:
        if self._open:
            self.fail(LinkLostError(f"closed here: {reason}"), LinkLostError(f"closed: {reason}"))

    async def drain(self, timeout: float, reason: str = "") -> bool:
        text = reason or "going away"
        if not self._open:
            return True
        if self._draining is None and not is_idle(self.handler):
            deadline = asyncio.get_running_loop().time() + timeout
            self._draining = Draining(text, deadline)
            self._owner.forget(self, LinkLostError(f"closing here: {text}"))
            self._deliver_farewell(text)
        if self._draining is None:
            await asyncio.sleep(self._latency)  # for what was written to arrive
            is_done = self._open and is_idle(self.handler)
            self.close(text)
            return is_done
        with anyio.move_on_after(timeout):
            await self._draining.is_over.wait()
        self.close(text)
        return self._draining.is_complete

    def fail(self, error: LinkError, theirs: LinkError | None = None) -> None:
        """End both ends, as a killed process or a cut cable would."""
        for end, cause in ((self, error), (self.other, theirs or error)):
            if end is not None and end._open:
                end._open = False
                if end._draining is not None:
                    end._draining.is_over.set()
                end._owner.forget(end, cause)
                if end.handler is not None:
                    asyncio.get_running_loop().call_soon(end.handler.link_lost, cause)

    def _deliver(self, event: str, stream_id: int, *args: object) -> None:
        other = self.other
        assert other is not None
        loop = asyncio.get_running_loop()
        self._meter.sent([each for each in args if isinstance(each, bytes)])

        self._look()

        def arrive() -> None:
            other._look()
            if other._open and other.handler is not None:
                other._heard = loop.time()
                other._count(event, stream_id, *args)
                getattr(other.handler, event)(stream_id, *args)

        self._later(arrive)

    def _later(self, arrive: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        if self._latency:
            # Timers that are due at the same time fire in any order; what arrives does not.
            self._under_way.append(arrive)
            loop.call_later(self._latency, lambda: self._under_way.popleft()())
        else:
            loop.call_soon(arrive)

    def _deliver_farewell(self, reason: str) -> None:
        other = self.other
        assert other is not None

        def arrive() -> None:
            if other._open:
                other._is_leaving = True
                other._owner.forget(other, LinkLostError(f"the other end is leaving: {reason}"))

        self._later(arrive)

    def _look(self) -> None:
        """A handler may be idle after what happens in this turn of the loop."""
        if self._draining is not None:
            asyncio.get_running_loop().call_soon(self._depart)

    def _depart(self) -> None:
        if self._draining is not None and self._open and is_idle(self.handler):
            self._draining.is_complete = True
            self.close(self._draining.reason)

    def _count(self, event: str, stream_id: int, *args: object) -> None:
        """Keep the statistics of what arrives."""
        is_theirs = (stream_id & 1 == 0) is not self._is_dialer
        if is_theirs and stream_id > self._newest[stream_id & 2]:
            self._newest[stream_id & 2] = stream_id
            self._halves.add((stream_id, False))
            if not stream_id & 2:
                self._halves.add((stream_id, True))
        if event == "stream_data":
            data, end = args
            assert isinstance(data, bytes)
            self._meter.packets_in += 1
            self._meter.bytes_in += len(data)
            if not end:
                return
        if event != "stream_stopped":
            self._halves.discard((stream_id, False))


class MemoryLinks:
    """The links of one peer in a `MemoryNetwork`; see `lattica.link.interface.Links`."""

    def __init__(
        self,
        network: MemoryNetwork,
        identity: Identity,
        membership: Membership,
        *,
        name: str = "",
        clock: Clock | None = None,
    ) -> None:
        self._network = network
        self._identity = identity
        self._membership = membership
        self._name = name or identity.peer_id.short
        self._clock = clock or SystemClock()
        self._links: dict[PeerId, MemoryLink] = {}
        self._acceptor: Callable[[Link], LinkHandler] | None = None
        self._listeners: list[Callable[[Link, bool], None]] = []
        self._retired = ""  # why no new links are made
        self._peers = Peers(LinkConfig(), lambda peer: None)  # nobody can be kept here
        network.members[identity.peer_id] = self

    @property
    def local(self) -> PeerId:
        return self._identity.peer_id

    def set_acceptor(self, acceptor: Callable[[Link], LinkHandler]) -> None:
        self._acceptor = acceptor

    def current(self) -> Sequence[Link]:
        return tuple(self._links.values())

    def find(self, peer: PeerId) -> Link | None:
        return self._links.get(peer)

    async def connect(self, peer: PeerId, addresses: Sequence[str] = ()) -> Link:
        if peer == self.local:
            raise SelfDialError("a peer cannot dial itself")
        if (link := self._links.get(peer)) is not None:
            return link
        loop, supervisor = asyncio.get_running_loop(), self._peers.supervisor
        self._peers.tell(supervisor.dialling(peer, loop.time()))
        try:
            await asyncio.sleep(self._network.latency)
            if (link := self._links.get(peer)) is not None:
                return link
            return self._link(peer)
        except LinkError as error:
            self._peers.tell(supervisor.failed(peer, error, loop.time()))
            raise
        except asyncio.CancelledError:
            given_up = LinkLostError("the dial was given up")
            self._peers.tell(supervisor.failed(peer, given_up, loop.time()))
            raise

    def _link(self, peer: PeerId) -> Link:
        if not self._network.reachable(self.local, peer):
            raise UnreachableError(f"{peer.short} does not answer")
        other = self._network.members[peer]
        if self._retired:
            raise LinkLostError("the endpoint is closed")
        if other._retired:
            raise LinkRefusedError(f"refused by the other end: {other._retired}")
        if other._membership.mesh != self._membership.mesh:
            raise CrossMeshError(f"{peer.short} belongs to another mesh")
        latency = self._network.latency
        mine = MemoryLink(self, other._describe(), is_dialer=True, latency=latency)
        theirs = MemoryLink(other, self._describe(), is_dialer=False, latency=latency)
        mine.other, theirs.other = theirs, mine
        for end in (theirs, mine):
            end._owner._links[end.remote.peer] = end
        for end in (theirs, mine):
            assert end._owner._acceptor is not None, "set_acceptor() comes first"
            end.handler = end._owner._acceptor(end)
            end._owner._notify(end, True)
            up = end._owner._peers.supervisor.up(end.remote.peer, "linked", end._born)
            end._owner._peers.tell(up)
        return mine

    def learn(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """In memory every member is known already."""

    def subscribe(self, listener: Callable[[Link, bool], None]) -> Callable[[], None]:
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def retire(self, reason: str) -> None:
        self._retired = reason

    def state(self, peer: PeerId) -> PeerState:
        return self._peers.supervisor.state(peer)

    def watch(self, listener: Callable[[PeerEvent], None]) -> Callable[[], None]:
        return self._peers.watch(listener)

    def forget(self, link: MemoryLink, error: LinkError) -> None:
        """Drop a link that has ended."""
        if self._links.get(link.remote.peer) is link:
            del self._links[link.remote.peer]
            self._notify(link, False)
            now = asyncio.get_running_loop().time()
            self._peers.tell(self._peers.supervisor.lost(link.remote.peer, error, now))

    def leave(self) -> None:
        """Vanish from the network: every link is lost."""
        self._network.members.pop(self.local, None)
        for link in tuple(self._links.values()):
            link.fail(LinkLostError(f"{self.local.short} is gone"))

    def _describe(self) -> RemotePeer:
        scopes = verify_chain(
            self._membership.chain,
            mesh=self._membership.mesh,
            subject=self.local,
            now=self._clock.time(),
        )
        root = root_of(self._membership.chain)
        return RemotePeer(self.local, self._membership.mesh, scopes, self._name, root)

    def _notify(self, link: MemoryLink, is_up: bool) -> None:
        for listener in tuple(self._listeners):
            listener(link, is_up)
