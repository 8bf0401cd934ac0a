"""The ways that one link's packets can take, and which they take now. No I/O.

QUIC keeps one address for a link; below it this table has the physical ones: direct, through a
TCP connection, through a relay. Probes (`lattica.path.probes`) try a new way, measure it, and tell
when it has died. A way is *proven* when a probe sent there was answered from there, so nobody can
have more sent to an address than the few probes that try it (RFC 9000 §8 asks the same of
migration).

Rules. The best proven way wins: direct before TCP before relayed, then the shorter round trip, by a
margin, so that it does not flap. The dialer chooses and marks its probes; the acceptor follows, so
both directions agree. Whoever finds its own way dead leaves it at once for the best that answers.
A way to a host that the other end has not named over the link itself is only taken when no
named one answers: who sits between cannot draw a link to himself while another way works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from lattica.path.choice import better, dispensable, is_needless, rank
from lattica.path.doubt import Doubt
from lattica.path.following import Following
from lattica.path.interface import VirtualAddress
from lattica.path.mtu import BASE, NEVER, MtuSearch
from lattica.path.probes import OVERHEAD, Flags, Kind, Prober, Received
from lattica.path.way import Orders, Way, WayEvents, WayKind, WayTimers

MAX_WAYS = 24  # of one link, tried ones included


class Ways:
    """All ways of one link.

    Attributes:
        current: the address that packets are sent to.
        due: when `check` may have something to do.
    """

    def __init__(
        self,
        first: VirtualAddress,
        kind: WayKind,
        prober: Prober,
        now: float,
        *,
        is_dialer: bool,
        events: WayEvents,
        size: int,
        search: Callable[[VirtualAddress, int, float], MtuSearch | None],
        names: Callable[[VirtualAddress], bool] = lambda _: True,
        kinds: Callable[[VirtualAddress], WayKind] = lambda _: WayKind.DIRECT,
        sizes: Callable[[VirtualAddress], int] = lambda _: BASE,
        timers: WayTimers | None = None,
        is_watched: bool = True,
    ) -> None:
        """`first` works already: the handshake took it.

        `size` is what its datagrams have now. `search(address, size, now)` begins the search for
        a way's datagram size, or is None where there is nothing to find. `names` says whether the
        other end named the host at an address, `kinds` what kind a new address is of, `sizes`
        how large datagrams may be there where nothing is to be found.
        Without `is_watched` no probe but those for sizes is sent on its own account.
        """
        self._prober = prober
        self._is_dialer = is_dialer
        self._events = events
        self._new_search = search
        self._names = names
        self._kinds = kinds
        self._sizes = sizes
        self._timers = timers or WayTimers()
        self.is_watched = is_watched
        self._ways: dict[VirtualAddress, Way] = {}
        self._sizing: dict[int, Way] = {}  # probes for sizes, by sequence
        self._sprayed: dict[int, float] = {}  # probes sent to many addresses, and until when
        self._doubt = Doubt(self._timers, now)
        self._chosen: VirtualAddress | None = None  # what the dialer last said it uses
        self._is_stranded = False
        self._following = Following(self._timers, now)
        self.switches = 0
        self._switched = now
        way = Way(first, kind, True, now, NEVER, NEVER, is_proven=True, answered=now)
        way.search = search(first, size, now)
        way.size = size
        self._ways[first] = self._current = way
        self.current = first
        self.size = size
        self.due = NEVER if way.search is None else way.search.due

    # ------------------------------------------------------------------ for the link

    @property
    def way(self) -> Way:
        """The one in use."""
        return self._current

    @property
    def all(self) -> Sequence[Way]:
        """Tried and proven ones."""
        return tuple(self._ways.values())

    def has(self, address: VirtualAddress) -> bool:
        """Whether the other end is known to be, or tried, at an address."""
        return address in self._ways

    def offer(
        self,
        address: VirtualAddress,
        now: float,
        *,
        kind: WayKind | None = None,
        is_named: bool = True,
        patience: float | None = None,
    ) -> None:
        """Try an address; probes leave with the next `check`."""
        until = now + (self._timers.patience if patience is None else patience)
        way = self._ways.get(address)
        if way is not None:
            way.is_named = way.is_named or is_named
            if not way.is_proven:
                way.until = max(way.until, until)
                way.next_at = min(way.next_at, now)
                self.due = min(self.due, now)
            return
        if len(self._ways) >= MAX_WAYS:
            least = dispensable(self._ways.values(), self._current, is_named=is_named)
            if least is None:
                return
            self._remove(least)
        kind = self._kinds(address) if kind is None else kind
        way = Way(address, kind, is_named, now, until, now)
        self._ways[address] = way
        self.due = min(self.due, now)
        self._events.opened(way)

    def rest_at_most(self, seconds: float) -> None:
        """Probe ways that stand by at least so often from their next probe on."""
        every = min(self._timers.standby_every, seconds)
        self._timers = msgspec.structs.replace(self._timers, standby_every=every)

    def knock(self) -> bytes:
        """A probe that only shows whether it comes in."""
        return self._prober.probe(OVERHEAD, Flags.KNOCK)[1]

    def spray(self, now: float, patience: float) -> bytes:
        """One probe to be sent to many addresses: where it arrives, the other end probes back."""
        sequence, datagram = self._prober.probe(OVERHEAD, self._flags(None))
        self._sprayed = {each: at for each, at in self._sprayed.items() if at > now}
        self._sprayed[sequence] = now + patience
        return datagram

    def received(self, datagram: bytes, source: VirtualAddress, place: str, now: float) -> Orders:
        """A probe or reply with this link's tag, from `source`, which is at `place`."""
        received = self._prober.receive(datagram)
        if received is None:
            return []
        if received.flags & Flags.KNOCK:
            self._events.knocked(source)
            return []
        if received.kind is Kind.PROBE:
            orders = [(source, self._prober.reply(received, place))]
            self._probed(received, source, now)
            return orders + self.check(now)
        self._replied(received, source, now)
        return self.check(now)

    def sent(self, size: int) -> bool:
        """The link has sent packets, the largest of `size`; whether `due` came closer."""
        if self._doubt.is_used and size < BASE:
            return False
        search = self._current.search
        if search is not None and size >= BASE and not search.is_used:
            search.used()
        elif self._doubt.is_used:
            return False
        self._doubt.is_used = True
        before = self.due
        self._set_due()
        return self.due < before

    def suspect_size(self) -> None:
        """Packets are lost on the way in use, it may be because of their size."""
        search = self._current.search
        if search is not None and search.size > BASE:
            search.suspect()

    def hurry(self, now: float) -> None:
        """There are signs of trouble: ask the way in use, and all others."""
        for way in self._ways.values():
            if way.is_proven and not self._is_asked(way, now):
                way.next_at = now
        self.due = min(self.due, now)

    def lose(self, address: VirtualAddress, now: float) -> None:
        """A way is gone for certain: its connection ended, its relay closed it."""
        way = self._ways.get(address)
        if way is None:
            return
        if way is self._current:
            way.misses = max(way.misses, self._timers.misses)
            self._leave(now)
        else:
            self._remove(way)
        self._set_due()

    def too_big(self, size: int, now: float) -> bool:
        """This machine does not send so large a datagram. False: no search is there to know it."""
        search = self._current.search
        if search is None:
            return False
        search.too_big(size, now)
        self.size = search.size
        self._set_due()
        return True

    def check(self, now: float, heard: float | None = None) -> Orders:
        """Look at the clock; `heard` is when the link last heard of the other end."""
        orders: Orders = []
        self._expire(now)
        if heard is not None and self.is_watched and self._doubt.is_used:
            self._watch(now, heard)
        for way in tuple(self._ways.values()):
            if way.next_at <= now:
                if is_needless(way, self._current, self._switched, now, self._timers):
                    self._remove(way)
                else:
                    orders.append(self._probe(way, now))
        orders += self._search(now)
        self._choose(now)
        self._set_due()
        return orders

    # ------------------------------------------------------------------ inside

    def _probed(self, received: Received, source: VirtualAddress, now: float) -> None:
        way = self._ways.get(source)
        if received.flags & Flags.ACTIVE and not self._is_dialer:
            self._chosen = source
        if way is None:
            if not self._may_follow(now):
                return
            is_named = self._names(source)
            self.offer(source, now, is_named=is_named)
            if not is_named and received.flags & Flags.ACTIVE:
                self.hurry(now)  # it may have moved: see whether where it was still answers
            return
        if not way.is_proven:
            # What came through shows that the other end's door is open: knock now.
            way.until = max(way.until, now + self._timers.patience)
            if not way.flying or now >= way.next_at - self._timers.try_fast / 2:
                way.next_at = now
        else:
            self._follow(now)

    def _may_follow(self, now: float) -> bool:
        """Whether to try a place only because the other end was seen there."""
        return self._following.take(now) or self._current.misses > 0  # it may have moved

    def _watch(self, now: float, heard: float) -> None:
        """Packets leave: see to it that the way in use is known to carry them."""
        current = self._current
        if not self._is_asked(current, now) and self._doubt.grows(
            current, now, heard, is_only=len(self._ways) == 1
        ):
            current.next_at = now

    def _follow(self, now: float) -> None:
        """The acceptor's part: send where the dialer does, if packets pass there."""
        way = self._ways.get(self._chosen) if self._chosen is not None else None
        if way is None or way is self._current or not way.is_alive:
            return
        if way.is_named or not self._current.is_alive:
            self._switch(way, now)

    def _replied(self, received: Received, source: VirtualAddress, now: float) -> None:
        sequence = received.sequence
        sizing = self._sizing.pop(sequence, None)
        if sizing is not None:
            if sizing.search is not None and sizing.address in self._ways:
                sizing.search.arrived(received.size, now)
                self._answered(sizing, received, now)
            return
        # Some NATs answer from another address than was asked. That the probe has arrived is
        # shown all the same: nobody else could have answered it (RFC 9000 §8.2.3).
        way = next((each for each in self._ways.values() if sequence in each.flying), None)
        if way is None:
            # Sprayed, or late: whether packets reach that address is not shown yet.
            if source in self._ways:
                if self._sprayed.get(sequence, 0.0) > now:
                    self.offer(source, now, is_named=self._names(source))
            elif self._may_follow(now):
                self.offer(source, now, is_named=self._names(source))
            return
        sent, _ = way.flying.pop(sequence)
        sample = max(now - sent, 1e-6)
        way.rtt = sample if not way.rtt else 0.75 * way.rtt + 0.25 * sample
        if not way.is_proven:
            way.is_proven = True
            way.until = NEVER
            way.search = self._new_search(way.address, BASE, now)
            way.size = self._sizes(way.address)
        self._answered(way, received, now)
        self._follow(now)

    def _answered(self, way: Way, received: Received, now: float) -> None:
        way.answered = now
        way.misses = 0
        way.flying.clear()  # older ones that are lost say nothing any more
        if received.observed and received.observed != way.observed:
            way.observed = received.observed
            self._events.observed(way)
        if way is self._current:
            self._doubt.rest()
            self._is_stranded = False
        way.next_at = NEVER if way is self._current else now + self._timers.standby_every

    def _expire(self, now: float) -> None:
        """Count what was not answered in time."""
        limit = self._timers.misses
        for way in tuple(self._ways.values()):
            late = [each for each, (_, overdue) in way.flying.items() if overdue <= now]
            for sequence in late:
                del way.flying[sequence]
            if not way.is_proven:
                if now >= way.until:
                    self._remove(way)
                continue
            if not late:
                continue
            if way is self._current and not way.misses:
                self._events.doubted(way)
            way.misses += len(late)
            if way.misses < limit:
                way.next_at = min(way.next_at, now)
                if way is self._current:
                    self._ask_others(now)
                    self._follow(now)
            elif way is self._current:
                self._leave(now)
                if way is self._current:
                    # Nothing answers. Go on asking, for it may come back.
                    way.next_at = min(way.next_at, now + self._timers.try_slow)
                    self._ask_others(now)
            else:
                self._remove(way)

    def _leave(self, now: float) -> None:
        """The way in use is dead: take the best of those that answer."""
        others = [each for each in self._ways.values() if each.is_proven]
        alive = [each for each in others if each is not self._current and each.misses == 0]
        if alive:
            self._switch(min(alive, key=rank), now)
        elif not self._is_stranded:
            self._is_stranded = True
            self._events.stranded()

    def _ask_others(self, now: float) -> None:
        for way in self._ways.values():
            if way is not self._current and way.is_proven and not way.flying:
                way.next_at = now

    def _choose(self, now: float) -> None:
        """The dialer's part: take what is clearly better."""
        if not self._is_dialer and self._current.is_alive:
            return
        best = better(self._current, self._ways.values(), self._timers)
        if best is not None:
            self._switch(best, now)

    def _switch(self, way: Way, now: float) -> None:
        old, self._current = self._current, way
        self.current = way.address
        self.switches += 1
        self._switched = now
        self._doubt.rest()
        self._is_stranded = False
        if old.misses < self._timers.misses:
            old.next_at = now + self._timers.standby_every
        way.next_at = now  # tells the other end
        self.size = way.size if way.search is None else way.search.size
        self._events.changed(old, way)
        if old.misses >= self._timers.misses:
            self._remove(old)

    def _search(self, now: float) -> Orders:
        way = self._current
        if way.search is None:
            return []
        sizes = way.search.probes(now, way.rtt)
        self.size = way.search.size
        orders: Orders = []
        for size in sizes:
            sequence, datagram = self._prober.probe(size, self._flags(way))
            self._sizing[sequence] = way
            orders.append((way.address, datagram))
        while len(self._sizing) > 64:
            del self._sizing[next(iter(self._sizing))]
        return orders

    def _probe(self, way: Way, now: float) -> tuple[VirtualAddress, bytes]:
        sequence, datagram = self._prober.probe(OVERHEAD, self._flags(way))
        timeout = max(self._timers.timeout, 2.0 * way.rtt + 0.05)
        if not way.is_proven:
            timeout = self._timers.patience  # the other end's door may open late
        way.flying[sequence] = (now, now + timeout)
        while len(way.flying) > 32:
            del way.flying[next(iter(way.flying))]
        if not way.is_proven:
            # Few in all: the address is the other end's word, and may be somebody else's.
            way.next_at = now + self._timers.try_fast * self._timers.try_slower**way.tries
            way.tries += 1
        elif way is self._current:
            way.next_at = now + self._timers.try_fast if way.misses else NEVER
        else:
            way.next_at = now + self._timers.standby_every
        return way.address, datagram

    def _flags(self, way: Way | None) -> Flags:
        return Flags.ACTIVE if way is not None and way is self._current else Flags.NONE

    def _is_asked(self, way: Way, now: float) -> bool:
        return bool(way.flying) or way.next_at <= now

    def _remove(self, way: Way) -> None:
        if self._ways.pop(way.address, None) is not None:
            self._events.closed(way)

    def _set_due(self) -> None:
        due = NEVER
        for way in self._ways.values():
            due = min(due, way.next_at, _first(overdue for _, overdue in way.flying.values()))
            if not way.is_proven:
                due = min(due, way.until)
        current = self._current
        if current.search is not None:
            due = min(due, current.search.due)
        if self.is_watched:
            due = min(due, self._doubt.due(current))
        self.due = due


def _first(times: Iterable[float]) -> float:
    return min(times, default=NEVER)
