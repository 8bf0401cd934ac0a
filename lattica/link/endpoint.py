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
    LinkError,
    LinkLostError,
    LinkRefusedError,
    SelfDialError,
)
from lattica.identity.grants import Membership
from lattica.identity.keys import Identity, PeerId
from lattica.link import header
from lattica.link.arbiter import DIAL_PATIENCE, Candidate, Ruling, stays
from lattica.link.certificate import Certificate
from lattica.link.dials import Dials
from lattica.link.doorkeeper import Doorkeeper, Entry
from lattica.link.engine import Engine, EngineConfig
from lattica.link.engines import choose, trace_directory
from lattica.link.interface import Link, LinkHandler
from lattica.link.proof import Role
from lattica.link.quic_link import Phase, QuicLink
from lattica.link.reception import Reception
from lattica.link.refusals import CloseCode, DuplicateLinkError
from lattica.link.schedule import Schedule
from lattica.link.supervision import PeerEvent, PeerState
from lattica.path.addresses import TCP
from lattica.path.interface import Path, VirtualAddress

logger = logging.getLogger("lattica.link")

TICK = 0.05  # seconds between looks at the clocks, at most
STALL = 0.1  # seconds that a tick is late, from which on links are told
MAX_WINDOW = 16 * 1024 * 1024  # bytes in flight, where the path knows no better
MAX_UNORDERED = 32 * 1024 * 1024  # bytes a link holds because something before them is missing


class Endpoint:
    """See `lattica.link.interface.Links`. Use as an async context manager; owns its path."""

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
        self._engines = choose(self.config.engine)
        self._qlog = trace_directory(self.config.qlog)
        if self._qlog is not None and self._engines.near.name != "aioquic":
            logger.warning("only aioquic writes traces: set LATTICA_QUIC=aioquic as well")
        self._doorkeeper = Doorkeeper(self.config)
        self._certificate = Certificate.generate()
        self._acceptor: Callable[[Link], LinkHandler] | None = None
        self._listeners: list[Callable[[Link, bool], None]] = []
        self._all: dict[QuicLink, None] = {}  # every connection, proven or not
        self._links: dict[PeerId, QuicLink] = {}  # the open ones, but for
        self._leaving: dict[QuicLink, None] = {}  # those that an end is draining
        self._candidates: dict[QuicLink, Candidate] = {}  # proven dialers, not yet answered
        self._dials = Dials(self, self.config)
        self._peers = self._dials.peers
        self._reception = Reception(path, self.counters, self._accept)
        self._tick_every = min(TICK, self.config.heartbeat / 4)
        self._schedule = Schedule(self._tick_every)
        self._dirty: dict[QuicLink, None] = {}
        self._is_flush_due = False
        self._tick_handle: asyncio.TimerHandle | None = None
        self._tick_due = 0.0
        self._tasks: TaskGroup | None = None
        self._is_running = False
        self._retired = ""  # why no new links are made

    async def __aenter__(self) -> Endpoint:
        self._loop = asyncio.get_running_loop()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._is_running = True
        self._dials.start(self._tasks)
        self.path.start(self)
        self._schedule_tick()
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
        for link in tuple(self._all):
            link.close("the peer is shutting down")
        if self._tick_handle is not None:
            self._tick_handle.cancel()
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
        return self._engines.near.name

    @property
    def addresses(self) -> tuple[str, ...]:
        """The `host:port`s that others can dial."""
        return self.path.addresses

    def set_acceptor(self, acceptor: Callable[[Link], LinkHandler]) -> None:
        self._acceptor = acceptor
        self._rule_all()

    def current(self) -> Sequence[Link]:
        return tuple(self._links.values())

    def find(self, peer: PeerId) -> Link | None:
        return self._links.get(peer)

    async def connect(self, peer: PeerId, addresses: Sequence[str] = ()) -> Link:
        if peer == self.local:
            raise SelfDialError("a peer cannot dial itself")
        if (link := self._links.get(peer)) is not None:
            return link
        if not self._is_running or self._retired:
            raise LinkLostError("the endpoint is closed")
        return await self._dials.connect(peer, addresses)

    async def drain(self, timeout: float, reason: str = "") -> None:
        """Make no new links, and close those there are once nothing is in flight on them.

        See `Link.drain`; `timeout` in seconds, for all together.
        """
        self.retire(reason)
        async with anyio.create_task_group() as tasks:
            for link in tuple(self._all):
                if link.is_open:
                    tasks.start_soon(link.drain, timeout, reason)

    def retire(self, reason: str) -> None:
        self._retired = reason or "the peer is shutting down"
        self._dials.close()
        self._rule_all()

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
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

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
        for link in tuple(self._all):
            if link.virtual_address == address:
                link.on_refused(now)

    def path_too_big(self, address: VirtualAddress, size: int) -> None:
        """See `lattica.path.interface.Receiver`."""
        self.counters["too_big"] += 1
        for link in tuple(self._all):
            if link.virtual_address == address:
                link.on_too_big(size)

    # ----------------------------------------------------------- from the links

    def link_dirty(self, link: QuicLink) -> None:
        """See `LinkOwner`."""
        self._dirty[link] = None
        if not self._is_flush_due:
            # Tasks that this turn has woken come first: what they write shares the packets.
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def link_keyed(self, link: QuicLink) -> None:
        """See `LinkOwner`."""
        if link.probe_tag is not None:
            self._reception.add_tag(link, link.probe_tag)

    def link_proven(self, link: QuicLink) -> None:
        """See `LinkOwner`."""
        peer = link.remote.peer
        if link.is_dialer:
            if peer in self._links:
                link.refuse(DuplicateLinkError("another link to this peer is up"))
            elif self._acceptor is None:
                link.refuse(LinkRefusedError("this peer is not ready"))
            else:
                link.confirm()
                self._link_up(link)
            return
        patience = min(DIAL_PATIENCE, self.config.handshake_timeout / 2)
        self._candidates[link] = Candidate(link, self._loop.time(), patience=patience)
        self._rule(link)

    def link_confirmed(self, link: QuicLink) -> None:
        """See `LinkOwner`."""
        if link in self._candidates:
            link.refuse(LinkRefusedError("confirmed before it was answered"))
            return
        existing = self._links.get(link.remote.peer)
        if existing is not None:
            loser = existing if stays(link, existing) else link
            loser.refuse(DuplicateLinkError("another link to this peer stays"))
            if loser is link:
                return
        self._link_up(link)

    def link_due(self, link: QuicLink, at: float) -> None:
        """See `LinkOwner`."""
        self._schedule.set(link, at)

    def link_suspect(self, link: QuicLink, reason: str) -> None:
        """See `LinkOwner`."""
        if self._links.get(link.remote.peer) is link:
            now = self._loop.time()
            self._peers.tell(self._peers.supervisor.suspect(link.remote.peer, reason, now))

    def link_heard(self, link: QuicLink) -> None:
        """See `LinkOwner`."""
        if self._links.get(link.remote.peer) is link:
            self._peers.tell(self._peers.supervisor.heard(link.remote.peer, self._loop.time()))

    def link_draining(self, link: QuicLink, error: LinkError) -> None:
        """See `LinkOwner`."""
        self._leaving[link] = None
        self._link_down(link, error)

    def link_ended(self, link: QuicLink, last_words: list[bytes]) -> None:
        """See `LinkOwner`."""
        self._all.pop(link, None)
        self._schedule.drop(link)
        self._dirty.pop(link, None)
        self._candidates.pop(link, None)
        self._reception.close(link, last_words, self._loop.time())
        self.path.release(link.virtual_address)
        self._leaving.pop(link, None)
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
        virtual = await self.path.resolve(address)
        engine = self._new_engine(virtual, is_client=True)
        now = self._loop.time()
        link = QuicLink(self, engine, virtual, role=Role.DIALER, now=now, expected=peer)
        self._add(link)
        link.dial(now)
        return link

    def pending(self, peer: PeerId) -> QuicLink | None:
        """See `Dialer`."""
        for link in self._all:
            if (
                link.phase is Phase.PROVEN
                and not link.is_dialer
                and link.remote.peer == peer
                and link not in self._candidates
            ):
                return link
        return None

    def dial_over(self) -> None:
        """See `Dialer`."""
        self._rule_all()

    # ------------------------------------------------------------------ inside

    @property
    def _pending(self) -> int:
        """How many connections are not open yet."""
        return len(self._all) - len(self._links) - len(self._leaving)

    def _accept(
        self, first: header.LongHeader, address: VirtualAddress, now: float
    ) -> QuicLink | None:
        if not self._is_running or len(self._links) >= self.config.max_links:
            self.counters["too_many_links"] += 1
            return None
        source = self.path.describe(address)
        decision = self._doorkeeper.decide(first, source, self._pending, now)
        if decision.entry is not Entry.ACCEPT:
            self.counters[decision.entry.value] += 1
            if decision.answer:
                self.path.send([decision.answer], address)
            return None
        engine = self._new_engine(
            address,
            is_client=False,
            original_destination=decision.original_destination,
            retry_source=decision.retry_source,
        )
        link = QuicLink(self, engine, address, role=Role.ACCEPTOR, now=now)
        self._add(link)
        return link

    def _add(self, link: QuicLink) -> None:
        self._all[link] = None
        self._schedule.set(link, self._loop.time())
        for connection_id in link.connection_ids:
            self._reception.add(link, connection_id)
        self.path.hold(link.virtual_address)

    def _new_engine(
        self,
        address: VirtualAddress,
        *,
        is_client: bool,
        original_destination: bytes | None = None,
        retry_source: bytes | None = None,
    ) -> Engine:
        make = self._engines.towards(self.path.describe(address))
        window = self.path.window_limit(address)
        size = self.path.datagram_limit(address)
        if size is None:
            # The least that QUIC needs passes wherever a link is possible; the rest is found.
            size = header.MIN_INITIAL if make.can_grow else self.config.datagram
        config = EngineConfig(
            is_client=is_client,
            qlog=self._qlog,
            certificate=self._certificate,
            datagram=max(header.MIN_INITIAL, min(size, self.config.max_datagram)),
            max_datagram=self.config.max_datagram,
            window=window or MAX_WINDOW,
            congestion="local" if window else "wan",
            max_unordered=MAX_UNORDERED,
        )
        return make(config, original_destination=original_destination, retry_source=retry_source)

    def _rule_all(self) -> None:
        for link in tuple(self._candidates):
            self._rule(link)

    def _rule(self, link: QuicLink) -> None:
        """Decide on a proven dialer, if that can be done yet."""
        candidate = self._candidates.get(link)
        if candidate is None or not self._is_running:
            return
        if self._retired:
            del self._candidates[link]
            link.refuse(LinkRefusedError(self._retired))
            return
        if self._acceptor is None:
            return
        peer = link.remote.peer
        existing = self._links.get(peer)
        ruling = candidate.rule(
            self.local, existing, is_dialling=self._dials.is_dialling(peer), now=self._loop.time()
        )
        if ruling is Ruling.WAIT:
            return
        del self._candidates[link]
        if ruling is Ruling.REFUSE:
            link.refuse(DuplicateLinkError("another link to this peer is up"))
            return
        if ruling is Ruling.REPLACE and existing is not None:
            text = "the peer came back with a new link"
            existing.end(LinkLostError(text), CloseCode.LOST, text)
        link.answer()

    def _link_up(self, link: QuicLink) -> None:
        assert self._acceptor is not None
        peer = link.remote.peer
        self._links[peer] = link
        try:
            link.open(self._acceptor)
        except Exception:  # a bug above must not cost other links their packets
            logger.exception("the acceptor failed on a link to %s", peer.short)
            self._links.pop(peer, None)
            link.refuse(LinkRefusedError("internal error"))
            return
        if not link.is_open:
            return  # its handler has closed it already
        self._dials.succeed(link)
        self._rule_all()
        self._notify(link, is_up=True)
        if not link.is_dialer:
            self._peers.supervisor.reset(peer)  # it is there, and it wants to talk
        reason = f"linked over {link.address}"
        self._peers.tell(self._peers.supervisor.up(peer, reason, self._loop.time()))

    def _link_down(self, link: QuicLink, error: LinkError) -> None:
        """To the layers above a link is down when it has ended, or takes nothing new."""
        peer = link.remote.peer
        if self._links.get(peer) is not link:
            return
        del self._links[peer]
        # Where it was reached last is where to look first; but nobody listens on the port
        # that a TCP connection came from.
        if link.is_dialer or not link.address.startswith(TCP):
            self._dials.book.learn(peer, [link.address])
        self._notify(link, is_up=False)
        self._rule_all()
        supervisor, now = self._peers.supervisor, self._loop.time()
        self._peers.tell(supervisor.lost(peer, error, now, is_ours=link.is_closed_here))

    def _notify(self, link: QuicLink, *, is_up: bool) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(link, is_up)
            except Exception:  # one listener's bug is not the others'
                logger.exception("a listener failed on a link to %s", link.remote.peer.short)

    def _flush(self) -> None:
        self._is_flush_due = False
        now = self._loop.time()
        dirty, self._dirty = self._dirty, {}
        for link in dirty:
            link.flush(now)

    def _schedule_tick(self) -> None:
        self._tick_due = self._loop.time() + self._tick_every
        self._tick_handle = self._loop.call_at(self._tick_due, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        late = now - self._tick_due
        if late > STALL:
            for link in tuple(self._all):
                link.on_stall(late, now)
        for link in self._schedule.pop(now):
            due = link.check(now)
            if link in self._all:
                self._schedule.set(link, due)
        self._reception.expire(now)
        self._rule_all()
        self._schedule_tick()
