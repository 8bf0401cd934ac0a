"""The size of a link's datagrams: probes, and the engine that goes by what they find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lattica.link.engine import Engine
from lattica.path.interface import Path, VirtualAddress
from lattica.path.mtu import BASE, NEVER, MtuSearch
from lattica.path.probes import ProbeKeys, Prober


class Sizing:
    """One link's search for the largest datagram that passes (`lattica.path.mtu`).

    Probes of the other end are answered as soon as both ends have the keys; own ones are sent
    when the link is open. They travel beside QUIC, so a lost one is no loss to its
    congestion control.
    """

    def __init__(
        self,
        engine: Engine,
        path: Path,
        address: VirtualAddress,
        keys: ProbeKeys,
        *,
        limit: int,
        counters: Counter[str],
    ) -> None:
        """`limit`, in bytes, is never exceeded; `counters` take what is dropped."""
        self._engine = engine
        self._path = path
        self._address = address
        self._prober = Prober(keys, counters)
        self._counters = counters
        self._limit = limit
        self._search: MtuSearch | None = None
        self._size = 0
        self.due = NEVER  # when `check` may have something to do

    @property
    def tag(self) -> bytes:
        """How the other end's probes name this link."""
        return self._prober.tag

    def begin(self, now: float) -> float:
        """The link is open. Returns when to call `check`."""
        self._size = self._engine.statistics().datagram
        if self._path.can_probe(self._address):
            limit = self._limit if self._engine.can_grow else self._size
            self._search = MtuSearch(now, start=self._size, limit=limit)
            self._advance(self._search, now)
        return self.due

    def check(self, now: float) -> float:
        """Look at the clock; when to look again."""
        if now >= self.due and self._search is not None:
            self._advance(self._search, now)
        return self.due

    def sent(self, datagrams: Sequence[bytes]) -> None:
        """The link has sent these. The first of a flush is as large as any."""
        if self._search is not None and len(datagrams[0]) > BASE and not self._search.is_used:
            self._search.used()
            self.due = self._search.due

    def received(self, datagram: bytes, source: VirtualAddress, now: float) -> None:
        """A probe, or the reply to one, with this link's tag."""
        result = self._prober.receive(datagram)
        if result.reply:
            self._path.send([result.reply], source)
        elif result.arrived and self._search is not None:
            self._search.arrived(result.arrived, now)
            self._advance(self._search, now)

    def too_big(self, size: int, now: float) -> None:
        """This machine does not send datagrams of `size` there."""
        if self._search is not None:
            self._search.too_big(size, now)
            self._advance(self._search, now)
        elif size > BASE:
            self._engine.set_datagram(BASE)  # in a handshake; the search comes after it

    def _advance(self, search: MtuSearch, now: float) -> None:
        sizes = search.probes(now, self._engine.rtt)
        self.due = search.due
        self._apply(search.size)
        for size in sizes:
            self._path.send([self._prober.probe(size)], self._address)

    def _apply(self, size: int) -> None:
        if size != self._size:
            if size < self._size:
                self._counters["datagram_shrunk"] += 1
            self._size = size
            self._engine.set_datagram(size)
