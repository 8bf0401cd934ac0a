"""A packet network within one process: the in-memory twin of UDP.

What happens to a datagram is decided by `lattica.path.emulator`, from one seed, so a run
can be repeated. The event loop's clock drives it: real, or virtual (`lattica.virtual_loop`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from lattica.errors import AddressError, PortInUseError
from lattica.path import addresses as text
from lattica.path.emulator import Conditions, Direction, Pipe
from lattica.path.interface import (
    OURS,
    QUIC_FIXED_BIT,
    PathStats,
    Receiver,
    VirtualAddress,
)
from lattica.path.routes import Routes

__all__ = ["Conditions", "MemoryPath", "PacketNetwork"]


class PacketNetwork:
    """Joins the `MemoryPath`s of one process. Addresses are `host:port` texts.

    `conditions` hold for every direction that `shape` gives none of its own, each with a
    line and a queue to itself. `uplink` and `downlink` add lines that all of a member's
    traffic shares.
    """

    def __init__(self, conditions: Conditions | None = None, *, seed: int = 0) -> None:
        self.conditions = conditions or Conditions()
        self._seed = seed
        self._counters: Counter[str] = Counter()
        self._members: dict[str, MemoryPath] = {}
        self._cut: set[frozenset[str]] = set()
        self._silent: set[str] = set()
        self._shaped: dict[tuple[str, str], Conditions] = {}
        self._directions: dict[tuple[str, str], Direction] = {}
        self._uplinks: dict[str, Pipe] = {}
        self._downlinks: dict[str, Pipe] = {}

    @property
    def counters(self) -> Counter[str]:
        """What became of all datagrams together."""
        return sum((each.counters for each in self._directions.values()), self._counters)

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

    def shape(self, source: str, target: str, conditions: Conditions) -> None:
        """Give one direction conditions of its own, from now on."""
        self._shaped[source, target] = conditions

    def uplink(self, address: str, rate: float, queue: int) -> Pipe:
        """All that a member sends shares one line: bytes/s, and bytes that may wait."""
        pipe = self._uplinks[address] = Pipe(rate, queue)
        return pipe

    def downlink(self, address: str, rate: float, queue: int) -> Pipe:
        """All that is sent to a member shares one line, after the way there."""
        pipe = self._downlinks[address] = Pipe(rate, queue)
        return pipe

    def direction(self, source: str, target: str) -> Direction:
        """The way from one address to another, with its counters and its backlog."""
        key = (source, target)
        direction = self._directions.get(key)
        if direction is None:
            seed = f"{self._seed} {source} {target}"
            direction = self._directions[key] = Direction(self.conditions, seed)
        direction.conditions = self._shaped.get(key, self.conditions)
        return direction

    def partition(self, one: str, other: str) -> None:
        """Drop everything between two addresses, also what is on its way."""
        self._cut.add(frozenset((one, other)))

    def heal(self, one: str, other: str) -> None:
        """Undo `partition`."""
        self._cut.discard(frozenset((one, other)))

    def blackout(self, one: str, other: str, seconds: float) -> None:
        """`partition` now and `heal` after so long."""
        self.partition(one, other)
        asyncio.get_running_loop().call_later(seconds, self.heal, one, other)

    def silence(self, address: str) -> None:
        """Drop everything to and from an address, as if its cable were pulled."""
        self._silent.add(address)

    def unsilence(self, address: str) -> None:
        """Undo `silence`."""
        self._silent.discard(address)

    def leave(self, address: str) -> None:
        """Forget a member."""
        self._members.pop(address, None)

    def carry(self, datagram: bytes, source: str, target: str) -> None:
        """Deliver, delay, repeat, spoil or lose one datagram."""
        if self._is_cut(source, target):
            self._counters["cut"] += 1
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        uplink = self._uplinks.get(source)
        if uplink is not None:
            left = uplink.enter(len(datagram), now)
            if left is None:
                self._counters["overflowed"] += 1
                return
            now = left
        step = self._come_down if target in self._downlinks else self._deliver
        for arrival, contents in self.direction(source, target).carry(datagram, now):
            loop.call_at(arrival, step, contents, source, target)

    def _is_cut(self, source: str, target: str) -> bool:
        if not self._cut and not self._silent:
            return False
        return (
            source in self._silent
            or target in self._silent
            or frozenset((source, target)) in self._cut
        )

    def _come_down(self, datagram: bytes, source: str, target: str) -> None:
        loop = asyncio.get_running_loop()
        arrival = self._downlinks[target].enter(len(datagram), loop.time())
        if arrival is None:
            self._counters["overflowed"] += 1
        else:
            loop.call_at(arrival, self._deliver, datagram, source, target)

    def _deliver(self, datagram: bytes, source: str, target: str) -> None:
        if self._is_cut(source, target):
            self._counters["cut"] += 1
            return
        member = self._members.get(target)
        if member is None:
            self._counters["nobody"] += 1
            return
        self._counters["delivered"] += 1
        member.arrived(datagram, source)


class MemoryPath:
    """See `lattica.path.interface.Path`. Physical addresses are `host:port` texts."""

    def __init__(self, network: PacketNetwork, address: str) -> None:
        self._network = network
        self._address = address
        self._routes: Routes[str] = Routes("udp")
        self._receiver: Receiver | None = None
        self._inbox: list[tuple[bytes, VirtualAddress]] = []
        self._counters: Counter[str] = Counter()
        self._in = Counter[str]()
        self._out = Counter[str]()

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self._address,)

    @property
    def counters(self) -> Counter[str]:
        return self._counters

    def statistics(self) -> PathStats:
        return PathStats(
            datagrams_in=self._in["datagrams"],
            bytes_in=self._in["bytes"],
            reads=self._in["reads"],
            datagrams_out=self._out["datagrams"],
            bytes_out=self._out["bytes"],
            writes=self._out["writes"],
            queued=0,
            receive_buffer=0,
            send_buffer=0,
            overruns=0,
            coalesced=True,
            segmented=True,
            dropped=dict(self._counters),
        )

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
        self._out.update(writes=1, datagrams=len(datagrams), bytes=sum(map(len, datagrams)))
        for datagram in datagrams:
            self._network.carry(datagram, self._address, target)

    def spray(self, datagram: bytes, addresses: Sequence[str]) -> None:
        if self._receiver is not None:
            for address in addresses:
                self._out.update(datagrams=1, bytes=len(datagram))
                self._network.carry(datagram, self._address, address)

    def datagram_limit(self, address: VirtualAddress) -> int | None:
        return None

    def can_probe(self, address: VirtualAddress) -> bool:
        return True

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
        self._in.update(datagrams=1, bytes=len(datagram))
        kind = datagram[0] if datagram else 0
        if not kind & QUIC_FIXED_BIT and kind not in OURS:
            self._counters["garbage"] += 1
            return
        if not self._inbox:
            asyncio.get_running_loop().call_soon(self._wake)
        self._inbox.append((datagram, self._routes.virtual(source)))

    def _wake(self) -> None:
        inbox, self._inbox = self._inbox, []
        self._in["reads"] += 1
        if self._receiver is None:
            return
        packets = [each for each in inbox if each[0][0] & QUIC_FIXED_BIT]
        if packets:
            self._receiver.packets_received(packets)
        if len(packets) < len(inbox) and self._receiver is not None:
            probes = [each for each in inbox if not each[0][0] & QUIC_FIXED_BIT]
            self._receiver.probes_received(probes)
