"""All QUIC links of one peer, over one path."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType

import anyio
from anyio.abc import TaskGroup

from lattica.clock import Clock, SystemClock
from lattica.config import LinkConfig
from lattica.errors import (
    AddressError,
    LinkError,
    LinkLostError,
    LinkRefusedError,
    SelfDialError,
)
from lattica.identity.grants import Membership
from lattica.identity.keys import Identity, PeerId
from lattica.link import header
from lattica.link.detour import Detour
from lattica.link.dials import Dials
from lattica.link.interface import Link, LinkHandler
from lattica.link.making import LinkMaker
from lattica.link.news import News
from lattica.link.quic_link import QuicLink
from lattica.link.reception import Reception
from lattica.link.room import Room
from lattica.link.rulings import Rulings
from lattica.link.supervision import PeerEvent, PeerState
from lattica.link.table import LinkTable
from lattica.link.turns import Turns
from lattica.path.addresses import is_relay, is_stream
from lattica.path.interface import Path, VirtualAddress

logger = logging.getLogger("lattica.link")


class Endpoint:
    """See `lattica.link.interface.Links`. Use as an async context manager; owns its path.

    Attributes:
        detour: opens ways through relays; None: there are none.
        on_dial: called with each address that a first packet is about to go to.
    """

    def __init__(
        self,
        identity: Identity,
        membership: Membership,
        path: Path,
        *,
        name: str = "",
        config: LinkConfig | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`name` is what this peer calls itself to others."""
        self.identity = identity
        self.membership = membership
        self.path = path
        self.name = name or identity.peer_id.short
        self.config = config or LinkConfig()
        self.clock = clock or SystemClock()
        self.counters: Counter[str] = Counter()
        self.detour: Detour | None = None
        self.on_dial: Callable[[str], None] | None = None
        self._acceptor: Callable[[Link], LinkHandler] | None = None
        self._links = LinkTable()
        self._maker = LinkMaker(self, self._links)
        self._rulings = Rulings(self, self._links, self.config)
        self._dials = Dials(self, self.config)
        self._peers = self._dials.peers
        self._news = News(self._peers)
        self._room = Room(self.config, self._links, self.counters, self._peers.supervisor.is_kept)
        self._reception = Reception(path, self.counters, self._accept)
        self._turns = Turns(self._links, self.config.heartbeat, self._ticked)
        self.link_dirty = self._turns.dirty  # for each packet, so without a step between
        self._tasks: TaskGroup | None = None
        self._is_running = False

    async def __aenter__(self) -> Endpoint:
        self._loop = asyncio.get_running_loop()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._is_running = True
        self._dials.start(self._tasks)
        self.path.start(self)
        self._turns.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._tasks is not None
        try:
            if kind is None:
                await self.drain(self.config.drain_timeout, "the peer is shutting down")
        finally:
            self._is_running = False
            self._dials.close()
            result = await self._end(kind, error, traceback)
        return result

    async def _end(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        for link in self._links:
            link.close("the peer is shutting down")
        self._turns.stop()
        self.path.close()
        try:
            if isinstance(error, Exception):
                # The body's own error leaves as it is, not wrapped in a group.
                await self._tasks.__aexit__(None, None, None)
                return None
            return await self._tasks.__aexit__(kind, error, traceback)
        finally:
            # The handlers' `link_lost` are called in this turn of the loop.
            with anyio.CancelScope(shield=True):
                await asyncio.sleep(0)

    # ------------------------------------------------------ the Links interface

    @property
    def local(self) -> PeerId:
        return self.identity.peer_id

    @property
    def engine_name(self) -> str:
        """The QUIC engine for links nearby: "aioquic" or "qh3". A link tells its own."""
        return self._maker.engine_name

    @property
    def addresses(self) -> tuple[str, ...]:
        """The `host:port`s that others can dial."""
        return self.path.addresses

    def set_acceptor(self, acceptor: Callable[[Link], LinkHandler]) -> None:
        self._acceptor = acceptor
        self._review()

    def current(self) -> Sequence[Link]:
        return tuple(self._links.open.values())

    def find(self, peer: PeerId) -> Link | None:
        return self._links.open.get(peer)

    async def connect(self, peer: PeerId, addresses: Sequence[str] = ()) -> Link:
        if peer == self.local:
            raise SelfDialError("a peer cannot dial itself")
        if (link := self._links.open.get(peer)) is not None:
            return link
        if not self._is_running or self._rulings.retired:
            raise LinkLostError("the endpoint is closed")
        return await self._dials.connect(peer, addresses)

    async def drain(self, timeout: float, reason: str = "") -> None:
        """Make no new links, and close those there are once nothing is in flight on them.

        See `Link.drain`; `timeout` in seconds, for all together.
        """
        self.retire(reason)
        async with anyio.create_task_group() as tasks:
            for link in self._links:
                if link.is_open:
                    tasks.start_soon(link.drain, timeout, reason)

    def retire(self, reason: str) -> None:
        self._rulings.retire(reason or "the peer is shutting down")
        self._dials.close()
        self._review()

    def learn(self, peer: PeerId, addresses: Sequence[str]) -> None:
        if peer != self.local:
            self._dials.learn(peer, addresses)

    def state(self, peer: PeerId) -> PeerState:
        return self._peers.supervisor.state(peer)

    def watch(self, listener: Callable[[PeerEvent], None]) -> Callable[[], None]:
        return self._peers.watch(listener)

    def keep(self, peer: PeerId) -> Callable[[], None]:
        """Have `peer` redialled whenever no link to it is up, until the result is called.

        Where it can be reached must have been learned; it may be learned later.
        """
        return self._peers.keep(peer)

    def subscribe(self, listener: Callable[[Link, bool], None]) -> Callable[[], None]:
        return self._news.subscribe(listener)

    # ------------------------------------------------------------ from the path

    def packets_received(self, packets: Sequence[tuple[bytes, VirtualAddress]]) -> None:
        """See `lattica.path.interface.Receiver`."""
        self._reception.packets(packets, self._loop.time())

    def probes_received(self, probes: Sequence[tuple[bytes, VirtualAddress]]) -> None:
        """See `lattica.path.interface.Receiver`."""
        self._reception.probes(probes, self._loop.time())

    def path_refused(self, address: VirtualAddress) -> None:
        """See `lattica.path.interface.Receiver`."""
        now = self._loop.time()
        for link in self._links:
            link.vitals.on_refused(address, now)

    def path_too_big(self, address: VirtualAddress, size: int) -> None:
        """See `lattica.path.interface.Receiver`."""
        self.counters["too_big"] += 1
        for link in self._links:
            link.on_too_big(address, size)

    # ----------------------------------------------------------- from the links

    def link_keyed(self, link: QuicLink) -> None:
        """See `LinkOwner`."""
        if link.probe_tag is not None:
            self._reception.add_tag(link, link.probe_tag)

    def link_proven(self, link: QuicLink) -> None:
        """See `LinkOwner`."""
        self._rulings.proven(link, self._loop.time())

    def link_confirmed(self, link: QuicLink) -> None:
        """See `LinkOwner`."""
        self._rulings.confirmed(link)

    def link_due(self, link: QuicLink, at: float) -> None:
        """See `LinkOwner`."""
        self._turns.due(link, at)

    def link_suspect(self, link: QuicLink, reason: str) -> None:
        """See `LinkOwner`."""
        if self._links.is_in_use(link):
            self._news.suspect(link, reason)

    def link_heard(self, link: QuicLink) -> None:
        """See `LinkOwner`."""
        if self._links.is_in_use(link):
            self._news.heard(link)

    def link_draining(self, link: QuicLink, error: LinkError) -> None:
        """See `LinkOwner`."""
        self._links.leave(link)
        self._link_down(link, error)

    def link_ended(self, link: QuicLink, last_words: list[bytes]) -> None:
        """See `LinkOwner`."""
        self._links.drop(link)
        self._turns.drop(link)
        self._rulings.drop(link)
        self._reception.close(link, last_words, self._loop.time())
        if link.steering is None or link.steering.ways is None:
            self.path.release(link.virtual_address)  # else its steering does
        if link.proven is not None and link.error is not None:
            self._link_down(link, link.error)
        else:
            self.counters[f"unproven:{type(link.error).__name__}"] += 1

    def connection_id_added(self, link: QuicLink, connection_id: bytes) -> None:
        """See `LinkOwner`."""
        self._reception.add(link, connection_id)

    def connection_id_removed(self, link: QuicLink, connection_id: bytes) -> None:
        """See `LinkOwner`."""
        self._reception.remove(link, connection_id)

    # ----------------------------------------------------------- from the dials

    async def start_link(self, peer: PeerId, address: str) -> QuicLink:
        """See `Dialer`."""
        made: list[QuicLink] = []
        if not is_relay(address):
            virtual = await self.path.resolve(address)
            if self.on_dial is not None:
                self.on_dial(self.path.describe(virtual))
        elif self.detour is None:
            raise AddressError(f"{address}: this peer uses no relays")
        else:
            virtual = await self.detour.open(peer, address, lambda error: made[0].refuse(error))
        now = self._loop.time()
        link = self._maker.dial(peer, virtual, now)
        made.append(link)
        self._add(link)
        link.dial(now)
        return link

    def pending(self, peer: PeerId) -> QuicLink | None:
        """See `Dialer`."""
        return self._rulings.pending(peer)

    def dial_over(self) -> None:
        """See `Dialer`."""
        self._review()

    # -------------------------------------------------------- from the rulings

    @property
    def is_ready(self) -> bool:
        """See `Opener`."""
        return self._acceptor is not None and self._is_running

    def is_dialling(self, peer: PeerId) -> bool:
        """See `Opener`."""
        return self._dials.is_dialling(peer)

    def make_room(self, link: QuicLink) -> LinkError | None:
        """See `Opener`."""
        return self._room.make(link)

    def open_link(self, link: QuicLink) -> None:
        """See `Opener`."""
        assert self._acceptor is not None
        peer = link.remote.peer
        self._links.open[peer] = link
        try:
            link.open(self._acceptor)
        except Exception:  # a bug above must not cost other links their packets
            logger.exception("the acceptor failed on a link to %s", peer.short)
            self._links.take_down(link)
            link.refuse(LinkRefusedError("internal error"))
            return
        if not link.is_open:
            return  # its handler has closed it already
        self._dials.succeed(link)
        self._review()
        self._news.up(link)

    # ------------------------------------------------------------------ inside

    def _accept(
        self, first: header.LongHeader, address: VirtualAddress, now: float
    ) -> QuicLink | None:
        link = self._maker.accept(first, address, now) if self._is_running else None
        if link is not None:
            self._add(link)
        return link

    def _add(self, link: QuicLink) -> None:
        self._links.add(link)
        self._turns.add(link)
        for connection_id in link.connection_ids:
            self._reception.add(link, connection_id)
        self.path.hold(link.virtual_address)

    def _review(self) -> None:
        if self._is_running:
            self._rulings.review(self._loop.time())

    def _link_down(self, link: QuicLink, error: LinkError) -> None:
        """To the layers above a link is down when it has ended, or takes nothing new."""
        if not self._links.take_down(link):
            return
        peer = link.remote.peer
        # Where it was reached last is where to look first; but nobody listens on the port
        # that a TCP connection came from.
        if link.is_dialer or not is_stream(link.address):
            self._dials.book.learn(peer, [link.address])
        self._news.down(link)
        self._review()
        self._news.lost(link, error)

    def _ticked(self, now: float) -> None:
        self._reception.expire(now)
        self._review()
