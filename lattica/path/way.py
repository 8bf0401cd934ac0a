"""One way of a link, its kinds, its clocks, and what is told of it."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from lattica.path.interface import VirtualAddress
from lattica.path.mtu import BASE, MtuSearch

Orders = list[tuple[VirtualAddress, bytes]]  # what to send where


class WayKind(IntEnum):
    """The better first."""

    DIRECT = 0
    STREAM = 1  # inside a TCP connection
    RELAYED = 2


class WayTimers(msgspec.Struct, frozen=True, kw_only=True):
    """In seconds."""

    confirm_every: float = 1.0  # a way that carries packets is probed so often
    silence: float = 0.35  # nothing heard for so long while packets leave: probe now
    timeout: float = 0.2  # of a probe, at least; round trips make it longer
    misses: int = 3  # unanswered probes in a row: the way is dead
    standby_every: float = 15.0  # a proven way that carries nothing is probed so often
    retire_after: float = 10.0  # a better way carries the link so long: no relay stands by
    try_fast: float = 0.1  # from the first probe of a new way to the second;
    try_slower: float = 2.0  # from each to the next so many times as long
    try_slow: float = 0.3  # between probes of a way that was proven and is silent
    patience: float = 3.0  # a new way is tried for so long
    follow_burst: int = 8  # places that nobody named, tried because packets came from there,
    follow_every: float = 30.0  # and another one after so long


class Way(msgspec.Struct, eq=False):
    """One way. Times in seconds of one monotonic clock, sizes in bytes."""

    address: VirtualAddress
    kind: WayKind
    is_named: bool  # the other end said, over the link, that this host is its own or its relay
    began: float
    until: float  # while it is not proven
    next_at: float
    is_proven: bool = False
    tries: int = 0  # probes sent before it was proven
    rtt: float = 0.0  # smoothed; 0.0 before the first answer
    answered: float = 0.0  # when it last was
    misses: int = 0  # unanswered probes in a row
    flying: dict[int, tuple[float, float]] = {}  # by sequence: when sent, when overdue
    search: MtuSearch | None = None
    size: int = BASE  # of its datagrams, where there is no search
    observed: str = ""  # this end's address, as the other end saw it on this way

    @property
    def is_alive(self) -> bool:
        """Whether it can carry packets, as far as is known."""
        return self.is_proven and self.misses == 0


class WayEvents:
    """What a link wants to know. Meant to be overridden; called from within the other calls."""

    def changed(self, old: Way, new: Way) -> None:
        """Packets now take another way."""

    def opened(self, way: Way) -> None:
        """A way is used or tried: its address must stay known."""

    def closed(self, way: Way) -> None:
        """A way is given up or dead."""

    def doubted(self, way: Way) -> None:
        """A probe on the way in use was not answered."""

    def knocked(self, address: VirtualAddress) -> None:
        """The other end, as was agreed, has sent from elsewhere, and it came in."""

    def stranded(self) -> None:
        """The way in use has died, and there is no other that answers."""

    def observed(self, way: Way) -> None:
        """The other end says anew, or for the first time, from where this way's probes come."""
