"""Virtual addresses and the candidate physical paths behind each.

Sources of packets cost nothing to invent, so addresses that no link holds are kept in
a bounded table, the least recently added leaving first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, Literal, TypeVar

import msgspec

from lattica.path.interface import VirtualAddress

P = TypeVar("P")

MAX_LOOSE = 4096  # addresses that no link holds


class Candidate(msgspec.Struct, Generic[P]):
    """One physical path to a remote. More kinds join with hole punching and relays."""

    address: P
    kind: Literal["direct"] = "direct"


class Route(msgspec.Struct, Generic[P]):
    """A remote: its virtual address, and the ways to it, best first."""

    address: VirtualAddress
    candidates: list[Candidate[P]]
    holds: int = 0

    @property
    def best(self) -> P:
        """Where packets go now."""
        return self.candidates[0].address


class Routes(Generic[P]):
    """The table of one path, from physical to virtual addresses and back."""

    def __init__(self, scheme: str, *, max_loose: int = MAX_LOOSE) -> None:
        self._scheme = scheme
        self._max_loose = max_loose
        self._next = 1
        self._by_physical: dict[P, Route[P]] = {}
        self._by_virtual: dict[VirtualAddress, Route[P]] = {}
        self._loose: OrderedDict[VirtualAddress, Route[P]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_virtual)

    def virtual(self, physical: P) -> VirtualAddress:
        """The virtual address of whoever is at `physical`, made on first sight."""
        route = self._by_physical.get(physical)
        if route is None:
            route = Route(VirtualAddress(self._scheme, self._next), [Candidate(physical)])
            self._next += 1
            self._by_physical[physical] = route
            self._by_virtual[route.address] = route
            self._loosen(route)
        return route.address

    def best(self, virtual: VirtualAddress) -> P | None:
        """The physical path to take now; None for an address long forgotten."""
        route = self._by_virtual.get(virtual)
        return None if route is None else route.best

    def hold(self, virtual: VirtualAddress) -> None:
        """Keep a route until `release`."""
        route = self._by_virtual.get(virtual)
        if route is not None:
            route.holds += 1
            self._loose.pop(virtual, None)

    def release(self, virtual: VirtualAddress) -> None:
        """The counterpart of `hold`."""
        route = self._by_virtual.get(virtual)
        if route is not None and route.holds > 0:
            route.holds -= 1
            if route.holds == 0:
                self._loosen(route)

    def _loosen(self, route: Route[P]) -> None:
        self._loose[route.address] = route
        if len(self._loose) > self._max_loose:
            _, oldest = self._loose.popitem(last=False)
            del self._by_virtual[oldest.address]
            for candidate in oldest.candidates:
                self._by_physical.pop(candidate.address, None)
