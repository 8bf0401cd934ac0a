"""A packet network within one process: the in-memory twin of UDP.

Latency, jitter, loss, duplication, reordering and partitions come from one seeded
generator, so a run can be repeated.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

import msgspec

from lattica.errors import AddressError, PortInUseError
from lattica.path import addresses as text
from lattica.path.interface import QUIC_FIXED_BIT, Receiver, VirtualAddress
from lattica.path.routes import Routes


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What the network does to packets. Times in seconds, the rest are probabilities."""

    latency: float = 0.0  # one way
    jitter: float = 0.0  # up to so much is added; order is kept
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0  # delayed behind packets sent up to `reorder_delay` later
    reorder_delay: float = 0.005


class PacketNetwork:
    """Joins the `MemoryPath`s of one process."""

    def __init__(self, conditions: Conditions | None = None, *, seed: int = 0) -> None:
        self.conditions = conditions or Conditions()
        self._random = random.Random(seed)
        self._members: dict[str, MemoryPath] = {}
        self._cut: set[frozenset[str]] = set()
        self._silent: set[str] = set()
        self._last_arrival: dict[tuple[str, str], float] = {}

    def path(self, host: str, port: int = 1) -> MemoryPath:
        """A new member's path.

        Raises:
            PortInUseError: another member has the address.
        """
        address = text.join(host, port)
        if address in self._members:
            raise PortInUseError(f"{address} is taken; choose another port")
        member = self._members[address] = MemoryPath(self, address)
        return member

    def partition(self, one: str, other: str) -> None:
        """Drop everything between two addresses."""
        self._cut.add(frozenset((one, other)))

    def heal(self, one: str, other: str) -> None:
        """Undo `partition`."""
        self._cut.discard(frozenset((one, other)))

    def silence(self, address: str) -> None:
        """Drop everything to and from an address, as if its cable were pulled."""
        self._silent.add(address)

    def leave(self, address: str) -> None:
        """Forget a member."""
        self._members.pop(address, None)

    def carry(self, datagram: bytes, source: str, target: str) -> None:
        """Deliver, delay, repeat or lose one datagram."""
        now, chance = self.conditions, self._random.random
        if (
            frozenset((source, target)) in self._cut
            or source in self._silent
            or target in self._silent
            or (now.loss and chance() < now.loss)
        ):
            return
        for _ in range(2 if now.duplicate and chance() < now.duplicate else 1):
            self._schedule(datagram, source, target)

    def _schedule(self, datagram: bytes, source: str, target: str) -> None:
        now, chance = self.conditions, self._random.random
        loop = asyncio.get_running_loop()
        arrival = loop.time() + now.latency + (now.jitter * chance() if now.jitter else 0.0)
        if now.reorder and chance() < now.reorder:
            arrival += now.reorder_delay * chance()
        else:
            # Never equal: the loop's timer heap does not keep the order of equal times.
            arrival = max(arrival, self._last_arrival.get((source, target), 0.0) + 1e-7)
            self._last_arrival[source, target] = arrival
        loop.call_at(arrival, self._deliver, datagram, source, target)

    def _deliver(self, datagram: bytes, source: str, target: str) -> None:
        member = self._members.get(target)
        if member is not None and target not in self._silent:
            member.arrived(datagram, source)


class MemoryPath:
    """See `lattica.path.interface.Path`. Physical addresses are `host:port` texts."""

    def __init__(self, network: PacketNetwork, address: str) -> None:
        self._network = network
        self._address = address
        self._routes: Routes[str] = Routes("memory")
        self._receiver: Receiver | None = None
        self._inbox: list[tuple[bytes, VirtualAddress]] = []
        self._counters: Counter[str] = Counter()

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self._address,)

    @property
    def counters(self) -> Counter[str]:
        return self._counters

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def close(self) -> None:
        self._receiver = None
        self._network.leave(self._address)

    async def resolve(self, address: str) -> VirtualAddress:
        host, port = text.split(address)
        if port == 0:
            raise AddressError(f"{address!r}: port 0 cannot be dialled")
        return self._routes.virtual(text.join(host, port))

    def send(self, datagrams: Sequence[bytes], address: VirtualAddress) -> None:
        target = self._routes.best(address)
        if target is None or self._receiver is None:
            self._counters["sent_nowhere"] += len(datagrams)
            return
        for datagram in datagrams:
            self._network.carry(datagram, self._address, target)

    def datagram_limit(self, address: VirtualAddress) -> int | None:
        return None

    def window_limit(self, address: VirtualAddress) -> int | None:
        return None

    def describe(self, address: VirtualAddress) -> str:
        return self._routes.best(address) or "forgotten"

    def hold(self, address: VirtualAddress) -> None:
        self._routes.hold(address)

    def release(self, address: VirtualAddress) -> None:
        self._routes.release(address)

    def arrived(self, datagram: bytes, source: str) -> None:
        """Collect what arrives in one turn of the loop, as a socket's buffer would."""
        if not datagram or not datagram[0] & QUIC_FIXED_BIT:
            self._counters["garbage"] += 1
            return
        if not self._inbox:
            asyncio.get_running_loop().call_soon(self._wake)
        self._inbox.append((datagram, self._routes.virtual(source)))

    def _wake(self) -> None:
        packets, self._inbox = self._inbox, []
        if self._receiver is not None:
            self._receiver.packets_received(packets)
