"""Several carriers as one path: each address says by its scheme which one takes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from lattica.errors import AddressError
from lattica.path import addresses as text
from lattica.path.extra import SCHEME as EXTRA
from lattica.path.extra import ExtraPaths
from lattica.path.interface import RELAY, Path, PathStats, Receiver, VirtualAddress
from lattica.path.relay import SCHEME as RELAYED
from lattica.path.relay import RelayPath
from lattica.path.unlisted import added_up

FIRST = 4  # addresses of the first carrier before those of the others: few lists are longer


class CombinedPath:
    """See `lattica.path.interface.Path`. Owns its carriers.

    Attributes:
        relay: the carrier of sessions through relays.
        extra: the carrier of further sockets, if `make_extra` was given.
    """

    def __init__(
        self, carriers: Mapping[str, Path], *, make_extra: Callable[[], Path] | None = None
    ) -> None:
        """By the prefix of their addresses; the first one's need none (`text.UDP`).

        A carrier's virtual addresses have the prefix, less its colon, as their scheme.
        """
        self._carriers = dict(carriers)
        self._by_scheme = {
            prefix.rstrip(":"): carrier for prefix, carrier in self._carriers.items()
        }
        self.relay = RelayPath(self)
        self.extra = None if make_extra is None else ExtraPaths(make_extra)
        self._inner: dict[str, Path] = {RELAYED: self.relay}
        if self.extra is not None:
            self._inner[EXTRA] = self.extra
        self._by_scheme |= self._inner

    @property
    def addresses(self) -> tuple[str, ...]:
        first, *others = (carrier.addresses for carrier in self._carriers.values())
        more = [address for addresses in others for address in addresses]
        return (*first[:FIRST], *more, *first[FIRST:])

    @property
    def counters(self) -> Counter[str]:
        """Of all carriers together."""
        return sum((each.counters for each in self._by_scheme.values()), Counter[str]())

    def statistics(self) -> PathStats:
        """Sums; buffers and batching are the first carrier's."""
        first, *others = (carrier.statistics() for carrier in self._carriers.values())
        return added_up(first, others, self.counters)

    def start(self, receiver: Receiver) -> None:
        sorted_out = _Sorted(receiver, self.relay)
        for carrier in self._by_scheme.values():
            carrier.start(sorted_out)

    def close(self) -> None:
        for carrier in tuple(self._by_scheme.values()):
            carrier.close()

    async def resolve(self, address: str) -> VirtualAddress:
        scheme, _ = text.split_scheme(address)
        carrier = self._carriers.get(scheme)
        if carrier is None:
            raise AddressError(f"{address!r}: this peer does not use {scheme.rstrip(':')} paths")
        return await carrier.resolve(address)

    def send(self, datagrams: Sequence[bytes], address: VirtualAddress) -> None:
        self._by_scheme[address.scheme].send(datagrams, address)

    def spray(self, datagram: bytes, addresses: Sequence[str]) -> None:
        next(iter(self._carriers.values())).spray(datagram, addresses)

    def datagram_limit(self, address: VirtualAddress) -> int | None:
        return self._by_scheme[address.scheme].datagram_limit(address)

    def can_probe(self, address: VirtualAddress) -> bool:
        return self._by_scheme[address.scheme].can_probe(address)

    def window_limit(self, address: VirtualAddress) -> int | None:
        return self._by_scheme[address.scheme].window_limit(address)

    def describe(self, address: VirtualAddress) -> str:
        return self._by_scheme[address.scheme].describe(address)

    def hold(self, address: VirtualAddress) -> None:
        self._by_scheme[address.scheme].hold(address)

    def release(self, address: VirtualAddress) -> None:
        self._by_scheme[address.scheme].release(address)


class _Sorted:
    """Takes relay frames out of what arrives, and puts back what they hold."""

    def __init__(self, receiver: Receiver, relay: RelayPath) -> None:
        self._receiver = receiver
        self._relay = relay
        self.packets_received = receiver.packets_received  # by far the most: straight through
        self.path_refused = receiver.path_refused
        self.path_too_big = receiver.path_too_big

    def probes_received(self, probes: Sequence[tuple[bytes, VirtualAddress]]) -> None:
        """See `Receiver`."""
        frames = [each for each in probes if each[0][0] == RELAY]
        if not frames:
            self._receiver.probes_received(probes)
            return
        packets, inner = self._relay.received(frames)
        inner += [each for each in probes if each[0][0] != RELAY]
        if packets:
            self._receiver.packets_received(packets)
        if inner:
            self._receiver.probes_received(inner)
