"""Connections as they begin: dialled from here, or asked for by a stranger's first packet."""

from __future__ import annotations

import logging

from lattica.identity.keys import PeerId
from lattica.link import header
from lattica.link.buckets import source_of
from lattica.link.certificate import Certificate
from lattica.link.doorkeeper import Doorkeeper, Entry
from lattica.link.engine import Engine, EngineConfig
from lattica.link.engines import choose, trace_directory
from lattica.link.owner import LinkOwner
from lattica.link.proof import Role
from lattica.link.quic_link import QuicLink
from lattica.link.table import LinkTable
from lattica.path import addresses
from lattica.path.interface import VirtualAddress

logger = logging.getLogger("lattica.link")

MAX_WINDOW = 16 * 1024 * 1024  # bytes in flight, where the path knows no better
MAX_UNORDERED = 32 * 1024 * 1024  # bytes a link holds because something before them is missing


class LinkMaker:
    """Makes the connections of one endpoint, with the engine and the sizes that a path wants."""

    def __init__(self, owner: LinkOwner, links: LinkTable) -> None:
        """`owner` is whom they belong to, `links` those that it has; new ones are not added."""
        self._owner = owner
        self._links = links
        self._qlog = trace_directory(owner.config.qlog)
        self._engines = choose(owner.config.engine, is_traced=self._qlog is not None)
        self._doorkeeper = Doorkeeper(owner.config)
        self._certificate = Certificate.generate()

    @property
    def engine_name(self) -> str:
        """The QUIC engine for links nearby: "aioquic" or "qh3"."""
        return self._engines.near.name

    def dial(self, peer: PeerId, address: VirtualAddress, now: float) -> QuicLink:
        """A connection to `peer`, whose first packet is not sent yet."""
        engine = self._engine(address, is_client=True)
        return QuicLink(self._owner, engine, address, role=Role.DIALER, now=now, expected=peer)

    def accept(
        self, first: header.LongHeader, address: VirtualAddress, now: float
    ) -> QuicLink | None:
        """The connection that a stranger's first packet asks for; None if it gets none now."""
        owner = self._owner
        if len(self._links) >= owner.config.max_links + owner.config.max_pending:
            owner.counters["too_many_links"] += 1
            return None
        source = owner.path.describe(address)
        who = source_of(source)
        pending = self._links.unopened
        shown = self._links.shown(who) if first.token else 0
        decision = self._doorkeeper.decide(first, source, pending, now, shown=shown)
        if decision.entry is not Entry.ACCEPT:
            owner.counters[decision.entry.value] += 1
            if decision.answer:
                owner.path.send([decision.answer], address)
            return None
        engine = self._engine(
            address,
            is_client=False,
            original_destination=decision.original_destination,
            retry_source=decision.retry_source,
        )
        link = QuicLink(owner, engine, address, role=Role.ACCEPTOR, now=now)
        link.source = "" if addresses.is_loopback(who) else who
        link.has_shown = decision.retry_source is not None
        return link

    def _engine(
        self,
        address: VirtualAddress,
        *,
        is_client: bool,
        original_destination: bytes | None = None,
        retry_source: bytes | None = None,
    ) -> Engine:
        path, settings = self._owner.path, self._owner.config
        make = self._engines.towards(path.describe(address))
        window = path.window_limit(address)
        size = path.datagram_limit(address)
        if size is None:
            # The least that QUIC needs passes wherever a link is possible; the rest is found.
            size = header.MIN_INITIAL if make.can_grow else settings.datagram
        config = EngineConfig(
            is_client=is_client,
            qlog=self._qlog,
            certificate=self._certificate,
            datagram=max(header.MIN_INITIAL, min(size, settings.max_datagram)),
            max_datagram=settings.max_datagram,
            window=window or MAX_WINDOW,
            congestion="local" if window else "wan",
            max_unordered=MAX_UNORDERED,
        )
        return make(config, original_destination=original_destination, retry_source=retry_source)
