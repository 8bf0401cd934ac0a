"""Where one link's packets go, and how large they are: probes, and what follows from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import anyio

from lattica.errors import AddressError
from lattica.link.engine import Engine
from lattica.path import addresses as text
from lattica.path.interface import Path, VirtualAddress
from lattica.path.mtu import BASE, NEVER, MtuSearch
from lattica.path.probes import Kind, ProbeKeys, Prober
from lattica.path.relay import SCHEME as RELAY_SCHEME
from lattica.path.way import Orders, Way, WayEvents, WayKind
from lattica.path.ways import Ways

MANY_LOST = 4  # packets, between two looks, and
MOST_LOST = 0.25  # of those sent since: more than chance takes, so are they too large?
MAX_NAMED = 64  # hosts that the other end may call its own


class Steering(WayEvents):
    """One link's ways (`lattica.path.ways`), over its path, for its engine.

    Probes of the other end are answered as soon as both ends have the keys; own ones are sent
    when the link is open. They travel beside QUIC, so a lost one is no loss to its
    congestion control.

    Attributes:
        current: where packets go now.
        tag: how the other end's probes name this link.
        due: when `check` may have something to do.
        moved: called with the old and the new way when packets take another one.
        lost: called when the way in use has died and no other answers.
        suspected: called when a probe on the way in use was not answered.
        let_in: called when a knock of the other end has come in from an address.
        seen: called when the other end tells from where the probes on a way come.
        placed: called when a way is there, or is not any more: see `has`.
    """

    def __init__(
        self,
        engine: Engine,
        path: Path,
        address: VirtualAddress,
        keys: ProbeKeys,
        *,
        is_dialer: bool,
        limit: int,
        counters: Counter[str],
    ) -> None:
        """`limit`, in bytes, is never exceeded; `counters` take what is dropped."""
        self._engine = engine
        self._path = path
        self._prober = Prober(keys, counters)
        self._counters = counters
        self._limit = limit
        self._is_dialer = is_dialer
        self._first = address
        self._named: set[str] = set()
        self._size = 0
        self._sent = 0  # packets since the last look at the engine's losses
        self._lost = 0  # packets, at that look
        self._is_over = False
        self._change = anyio.Event()
        self._held: set[VirtualAddress] = set()
        self.ways: Ways | None = None
        self.current = address
        self.due = NEVER
        self.tag = self._prober.tag
        self.moved: Callable[[Way, Way], None] | None = None
        self.lost: Callable[[], None] | None = None
        self.seen: Callable[[Way], None] | None = None
        self.suspected: Callable[[], None] | None = None
        self.let_in: Callable[[VirtualAddress], None] | None = None
        self.placed: Callable[[VirtualAddress, bool], None] | None = None

    def begin(self, now: float) -> float:
        """The link is open. Returns when to call `check`."""
        self._size = self._engine.statistics().datagram
        self._held.add(self._first)  # its owner has held it so far
        where = self._path.describe(self._first)
        self.name([where])
        self.ways = Ways(
            self._first,
            self._kind(self._first),
            self._prober,
            now,
            is_dialer=self._is_dialer,
            events=self,
            size=self._size,
            search=self._search,
            names=self._is_named,
            kinds=self._kind,
            sizes=lambda address: self._path.datagram_limit(address) or BASE,
            is_watched=not text.is_local(text.strip_scheme(where)),
        )
        self._send(self.ways, self.ways.check(now))
        return self.due

    async def next_change(self) -> None:
        """Wait until packets take another way, or the link is over."""
        await self._change.wait()  # no deadline: the link itself is watched

    def end(self) -> None:
        """The link is over."""
        self._is_over = True
        self._change.set()
        for address in self._held:
            self._path.release(address)
        self._held.clear()

    @property
    def is_watched(self) -> bool:
        """Whether the other end is on another machine, so that ways come and go."""
        return self.ways is not None and self.ways.is_watched

    def has(self, address: VirtualAddress) -> bool:
        """Whether the other end is known to be, or tried, at an address."""
        return address == self._first if self.ways is None else self.ways.has(address)

    def name(self, addresses: Iterable[str]) -> None:
        """The other end has said, over the link, that these are its own: addresses or hosts."""
        for address in addresses:
            host = _host(address) or address
            if host is not None and len(self._named) < MAX_NAMED:
                self._named.add(host)
        for way in () if self.ways is None else self.ways.all:
            way.is_named = way.is_named or self._is_named(way.address)

    def offer(self, address: VirtualAddress, now: float, *, patience: float | None = None) -> None:
        """Try a way to the other end. No effect on a link that is not open."""
        if self.ways is not None and not self._is_over:
            self.ways.offer(address, now, is_named=True, patience=patience)
            self._send(self.ways, self.ways.check(now))

    def rest_at_most(self, seconds: float) -> None:
        """See `Ways.rest_at_most`."""
        if self.ways is not None:
            self.ways.rest_at_most(seconds)

    def knock(self) -> bytes | None:
        """See `Ways.knock`; None on a link that is not open."""
        return None if self.ways is None else self.ways.knock()

    def spray(self, now: float, patience: float) -> bytes | None:
        """See `Ways.spray`; None on a link that is not open."""
        return None if self.ways is None else self.ways.spray(now, patience)

    def check(self, now: float, heard: float) -> float:
        """Look at the clock; when to look again. `heard`: when the other end last was."""
        if now >= self.due and self.ways is not None:
            if self.ways.size > BASE and self._sent:
                self._look_for_losses(self.ways)
            self._send(self.ways, self.ways.check(now, heard))
        return self.due

    def sent(self, datagrams: Sequence[bytes]) -> bool:
        """The link has sent these, the first as large as any; whether `due` came closer."""
        self._sent += len(datagrams)
        if self.ways is None or not self.ways.sent(len(datagrams[0])):
            return False
        self.due = self.ways.due
        return True

    def received(self, datagram: bytes, source: VirtualAddress, now: float) -> None:
        """A probe, or the reply to one, with this link's tag."""
        place = self._path.describe(source)
        if self.ways is not None:
            self._send(self.ways, self.ways.received(datagram, source, place, now))
            return
        probe = self._prober.receive(datagram)
        if probe is not None and probe.kind is Kind.PROBE:
            self._path.send([self._prober.reply(probe, place)], source)

    def too_big(self, size: int, now: float) -> None:
        """This machine does not send datagrams of `size` there."""
        if self.ways is not None and self.ways.too_big(size, now):
            self._send(self.ways, self.ways.check(now))
        elif size > BASE:
            self._engine.set_datagram(BASE)  # in a handshake; the search comes after it

    def hurry(self, now: float) -> float:
        """The other end gives no sign of life: ask on every way. When to call `check`."""
        if self.ways is not None and self.ways.is_watched:
            self.ways.hurry(now)
            self._send(self.ways, self.ways.check(now))
        return self.due

    def refused(self, address: VirtualAddress, now: float) -> bool:
        """Nobody listens there, it is said. Whether another way makes it unimportant."""
        if self.ways is None or not self.ways.has(address):
            return False
        if self._kind(address) is WayKind.DIRECT:
            # Where there is another way, probes will show what is true and find it.
            return address != self.current or any(
                way.is_alive and way.address != address for way in self.ways.all
            )
        was_current = address == self.current
        self.ways.lose(address, now)
        self._send(self.ways, self.ways.check(now))
        return not was_current or self.current != address

    # ------------------------------------------------------------ from the ways

    def changed(self, old: Way, new: Way) -> None:
        self.current = new.address
        change, self._change = self._change, anyio.Event()
        change.set()
        self._counters["way:changed"] += 1
        if self.moved is not None:
            self.moved(old, new)

    def opened(self, way: Way) -> None:
        if way.address not in self._held:
            self._held.add(way.address)
            self._path.hold(way.address)
        if self.placed is not None:
            self.placed(way.address, True)

    def closed(self, way: Way) -> None:
        if way.address in self._held:
            self._held.discard(way.address)
            self._path.release(way.address)
        if self.placed is not None:
            self.placed(way.address, False)

    def doubted(self, way: Way) -> None:
        if self.suspected is not None:
            self.suspected()

    def knocked(self, address: VirtualAddress) -> None:
        if self.let_in is not None:
            self.let_in(address)

    def observed(self, way: Way) -> None:
        if self.seen is not None:
            self.seen(way)

    def stranded(self) -> None:
        self._counters["way:stranded"] += 1
        if self.lost is not None:
            self.lost()

    # ------------------------------------------------------------ inside

    def _look_for_losses(self, ways: Ways) -> None:
        """Where most of what was sent is lost, see at once whether so large datagrams pass."""
        sent, before = self._sent, self._lost
        self._sent, self._lost = 0, self._engine.statistics().packets_lost
        if self._lost - before >= max(MANY_LOST, MOST_LOST * sent):
            ways.suspect_size()

    def _send(self, ways: Ways, orders: Orders) -> None:
        self.due = ways.due
        size = ways.size
        if size != self._size:
            if size < self._size:
                self._counters["datagram_shrunk"] += 1
            self._size = size
            self._engine.set_datagram(size)
        for address, datagram in orders:
            self._path.send([datagram], address)

    def _search(self, address: VirtualAddress, size: int, now: float) -> MtuSearch | None:
        if not self._path.can_probe(address):
            return None
        limit = self._limit if self._engine.can_grow else self._size
        return MtuSearch(now, start=size, limit=limit)

    def _kind(self, address: VirtualAddress) -> WayKind:
        if address.scheme == RELAY_SCHEME:
            return WayKind.RELAYED
        is_stream = address.scheme in ("tcp", "tls")
        return WayKind.STREAM if is_stream else WayKind.DIRECT

    def _is_named(self, address: VirtualAddress) -> bool:
        return address.scheme == RELAY_SCHEME or _host(self._path.describe(address)) in self._named


def _host(address: str) -> str | None:
    try:
        return text.split(text.strip_scheme(address))[0].removeprefix("::ffff:")
    except AddressError:
        return None
