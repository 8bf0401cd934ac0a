"""NATs and firewalls as RFC 4787 names their behaviours. Sans-IO and seeded.

A box stands between an inside and an outside network. It is told of each packet and the
time, and says what leaves it on the other side; None is a drop, counted with its reason.
"""

from __future__ import annotations

import random
from collections import Counter
from enum import Enum
from typing import NamedTuple, Protocol

import msgspec

UDP, TCP, OTHER = "udp", "tcp", "other"
LOWEST_PORT, HIGHEST_PORT = 1024, 65_535
BLOCK = 512  # ports of one subscriber of a carrier NAT
TCP_TIMEOUT = 7440.0  # seconds; RFC 5382, REQ-5

Address = tuple[str, int]


class Packet(NamedTuple):
    """The part of a packet that boxes look at and change."""

    source: Address
    target: Address
    protocol: str = UDP


class Dependence(Enum):
    """How much of the remote endpoint a mapping or a filter looks at (RFC 4787, 4.1 and 5)."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS = "address-dependent"
    ADDRESS_AND_PORT = "address-and-port-dependent"

    def of(self, remote: Address) -> Address | str | None:
        """What is looked at."""
        if self is Dependence.ENDPOINT_INDEPENDENT:
            return None
        return remote[0] if self is Dependence.ADDRESS else remote


class Ports(Enum):
    """How the outside port of a new mapping is chosen (RFC 4787, 4.2)."""

    PRESERVE = "preserve"  # the inside port, the next free one where it is taken
    RANDOM = "random"
    SEQUENTIAL = "sequential"
    BLOCK = "block"  # at random from the subscriber's block


class Translation(msgspec.Struct, frozen=True, kw_only=True):
    """What kind of NAT it is."""

    mapping: Dependence = Dependence.ENDPOINT_INDEPENDENT
    filtering: Dependence = Dependence.ADDRESS_AND_PORT
    ports: Ports = Ports.PRESERVE
    hairpin: bool = False
    timeout: float = 120.0  # seconds that an idle UDP mapping lives; RFC 4787, REQ-5
    refreshed_inbound: bool = True  # else only what goes out keeps a mapping; REQ-6
    capacity: int = 65_536  # mappings; new ones are refused above


class Box(Protocol):
    """What stands between an inside and an outside network."""

    address: str | None  # the outside address; None where nothing is translated
    hairpin: bool
    counters: Counter[str]

    def outbound(self, packet: Packet, now: float) -> Packet | None:
        """From inside to outside."""
        ...

    def inbound(self, packet: Packet, now: float) -> Packet | None:
        """From outside to inside."""
        ...

    def reboot(self, address: str | None = None) -> None:
        """Forget all state, and take a new outside address if one is given."""
        ...


class _Mapping:
    """One line of the table, and the remotes that may answer through it."""

    __slots__ = ("contacts", "inside", "key", "outside", "used")

    def __init__(self, key: object, inside: Address, outside: tuple[str, int], now: float) -> None:
        self.key = key
        self.inside = inside
        self.outside = outside  # protocol and port
        self.used = now
        self.contacts: dict[object, float] = {}


class Nat:
    """A translating box with one outside address."""

    def __init__(self, kind: Translation, address: str, *, seed: int | str = 0) -> None:
        self.kind = kind
        self.address: str | None = address
        self.hairpin = kind.hairpin
        self.counters: Counter[str] = Counter()
        self._random = random.Random(f"nat {seed}")
        self._forwards: dict[tuple[str, int], Address] = {}
        self.reboot()

    def __len__(self) -> int:
        return len(self._by_key)

    def reboot(self, address: str | None = None) -> None:
        """See `Box.reboot`. Forwards asked for by port mapping go too."""
        if address is not None:
            self.address = address
        self._by_key: dict[object, _Mapping] = {}
        self._by_outside: dict[tuple[str, int], _Mapping] = {}
        self._blocks: dict[str, int] = {}
        self._forwards.clear()
        self._next = self._random.randint(LOWEST_PORT, HIGHEST_PORT)
        self._swept = float("-inf")

    def forward(self, port: int, inside: Address, protocol: str = UDP) -> None:
        """Send what arrives at an outside port to `inside`, as port mapping protocols ask."""
        self._forwards[protocol, port] = inside

    def unforward(self, port: int, protocol: str = UDP) -> None:
        """Undo `forward`."""
        self._forwards.pop((protocol, port), None)

    def outbound(self, packet: Packet, now: float) -> Packet | None:
        """See `Box.outbound`."""
        source, target, protocol = packet
        if protocol == OTHER:
            self.counters["untranslatable"] += 1
            return None
        for (kind, port), inside in self._forwards.items():
            if inside == source and kind == protocol:
                return Packet((str(self.address), port), target, protocol)
        key = (protocol, source, self.kind.mapping.of(target))
        mapping = self._live(self._by_key.get(key), now) or self._open(key, packet, now)
        if mapping is None:
            return None
        mapping.used = now
        mapping.contacts[self.kind.filtering.of(target)] = now
        return Packet((str(self.address), mapping.outside[1]), target, protocol)

    def inbound(self, packet: Packet, now: float) -> Packet | None:
        """See `Box.inbound`."""
        source, target, protocol = packet
        inside = self._forwards.get((protocol, target[1]))
        if inside is not None:
            return Packet(source, inside, protocol)
        mapping = self._live(self._by_outside.get((protocol, target[1])), now)
        if mapping is None:
            self.counters["unmapped"] += 1
            return None
        contact = self.kind.filtering.of(source)
        contacted = mapping.contacts.get(contact)
        if contacted is None or now - contacted > self._timeout(protocol):
            self.counters["filtered"] += 1
            return None
        if self.kind.refreshed_inbound:
            mapping.used = mapping.contacts[contact] = now
        return Packet(source, mapping.inside, protocol)

    def _timeout(self, protocol: str) -> float:
        return TCP_TIMEOUT if protocol == TCP else self.kind.timeout

    def _live(self, mapping: _Mapping | None, now: float) -> _Mapping | None:
        if mapping is None or now - mapping.used <= self._timeout(mapping.outside[0]):
            return mapping
        self._forget(mapping)
        return None

    def _forget(self, mapping: _Mapping) -> None:
        del self._by_key[mapping.key]
        del self._by_outside[mapping.outside]

    def _open(self, key: object, packet: Packet, now: float) -> _Mapping | None:
        if now - self._swept > self.kind.timeout:
            self._swept = now
            for old in list(self._by_key.values()):
                self._live(old, now)
        if len(self._by_key) >= self.kind.capacity:
            self.counters["table_full"] += 1
            return None
        port = self._choose(packet)
        if port is None:
            self.counters["no_port"] += 1
            return None
        mapping = _Mapping(key, packet.source, (packet.protocol, port), now)
        self._by_key[key] = self._by_outside[mapping.outside] = mapping
        return mapping

    def _choose(self, packet: Packet) -> int | None:
        low, high = LOWEST_PORT, HIGHEST_PORT
        if self.kind.ports is Ports.PRESERVE:
            start = packet.source[1]
        elif self.kind.ports is Ports.SEQUENTIAL:
            start = self._next
        else:
            if self.kind.ports is Ports.BLOCK:
                low, high = self._block(packet.source[0])
            start = self._random.randint(low, high)
        start = max(start, low)
        size = high - low + 1
        for step in range(size):
            port = low + (start - low + step) % size
            if (packet.protocol, port) in self._by_outside:
                continue
            if (packet.protocol, port) in self._forwards:
                continue
            self._next = port + 1 if port < high else low
            return port
        return None

    def _block(self, subscriber: str) -> tuple[int, int]:
        """The first and last port of a subscriber's block; none shares while some are free."""
        start = self._blocks.get(subscriber)
        if start is None:
            every = range(LOWEST_PORT, HIGHEST_PORT + 1, BLOCK)
            free = sorted(set(every) - set(self._blocks.values())) or list(every)
            start = self._blocks[subscriber] = self._random.choice(free)
        return start, start + BLOCK - 1


class Firewall:
    """Translates nothing; lets in what answers to something from inside."""

    def __init__(
        self,
        filtering: Dependence = Dependence.ADDRESS_AND_PORT,
        *,
        timeout: float = 120.0,
        open_to_all: bool = False,
    ) -> None:
        self.address: str | None = None
        self.hairpin = False
        self.counters: Counter[str] = Counter()
        self._filtering = filtering
        self._timeout = timeout
        self._open_to_all = open_to_all
        self._seen: dict[object, float] = {}

    def reboot(self, address: str | None = None) -> None:
        """See `Box.reboot`; there is no address to change."""
        self._seen.clear()

    def outbound(self, packet: Packet, now: float) -> Packet | None:
        """See `Box.outbound`."""
        if not self._open_to_all:
            self._seen[self._key(packet.protocol, packet.source, packet.target)] = now
        return packet

    def inbound(self, packet: Packet, now: float) -> Packet | None:
        """See `Box.inbound`."""
        if self._open_to_all:
            return packet
        key = self._key(packet.protocol, packet.target, packet.source)
        timeout = TCP_TIMEOUT if packet.protocol == TCP else self._timeout
        seen = self._seen.get(key)
        if seen is None or now - seen > timeout:
            self._seen.pop(key, None)
            self.counters["filtered"] += 1
            return None
        self._seen[key] = now
        return packet

    def _key(self, protocol: str, inside: Address, remote: Address) -> object:
        return protocol, inside, self._filtering.of(remote)
