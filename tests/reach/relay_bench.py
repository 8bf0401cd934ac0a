"""A relay without a network: its links are places, its clock is set by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import cast

from lattica.config import RelayConfig
from lattica.identity.keys import PeerId
from lattica.path.interface import RELAY, Path, VirtualAddress
from lattica.reach.forwarding import Forwarder


def place(number: int, scheme: str = "udp") -> VirtualAddress:
    return VirtualAddress(scheme, number)


def peer_id(number: int) -> PeerId:
    return PeerId(number.to_bytes(32, "big"))


def name_of(number: int) -> bytes:
    return number.to_bytes(8, "big")


def frame(session: bytes, size: int = 1200, fill: int = 0x40) -> bytes:
    """A frame of `size` bytes, as it is on the wire."""
    return (bytes((RELAY,)) + session).ljust(size, bytes((fill,)))


class Link:
    """A leg. Its peer is known to be at `places`."""

    def __init__(self, *places: VirtualAddress) -> None:
        self.places = set(places)
        self.current = places[0]

    def has(self, address: VirtualAddress) -> bool:
        return address in self.places


class Bench:
    """A forwarder, and what it sent. Peer `n` is linked from `place(n)`."""

    def __init__(self, peers: int = 4, **limits: float) -> None:
        self.now = 1000.0
        self.sent: list[tuple[VirtualAddress, list[bytes]]] = []
        self.out = 0
        self.peers = [peer_id(number) for number in range(peers)]
        self.links: dict[PeerId, Link] = {
            peer: Link(place(number)) for number, peer in enumerate(self.peers)
        }
        self.counters = Counter[str]()
        self.config = RelayConfig(**limits)  # type: ignore[arg-type]
        self.relay = Forwarder(
            cast(Path, self),
            self.links.get,
            self.config,
            whose=self._whose,
            counters=self.counters,
            now=lambda: self.now,
        )

    def send(self, datagrams: Sequence[bytes], address: VirtualAddress) -> None:
        """As the relay's path."""
        self.out += len(datagrams)
        self.sent.append((address, list(datagrams)))

    def link(self, source: int, target: int, session: int = 1) -> bytes:
        """A reservation and a session; its name."""
        self.relay.reserve(self.peers[target])
        name = name_of(session)
        self.relay.open(name, self.peers[source], self.peers[target])
        return name

    def give(self, session: bytes, source: int, sizes: Iterable[int] = (1200,)) -> int:
        """Frames from a peer's place; how many went on."""
        before = self.out
        at = place(source)
        self.relay.forward([(frame(session, size), at) for size in sizes])
        return self.out - before

    def wait(self, seconds: float) -> None:
        """Time passes, with a check each second as in a running relay."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + 1.0)
            self.relay.check()

    def arrived(self) -> list[tuple[VirtualAddress, bytes]]:
        """What was sent since the last call, in order for each place."""
        sent, self.sent = self.sent, []
        return [(address, each) for address, datagrams in sent for each in datagrams]

    def assert_adds_up(self) -> None:
        stats = self.relay.statistics()
        assert stats.frames_in == stats.frames_out + stats.waiting + sum(stats.dropped.values())
        assert dict(self.counters) == stats.dropped

    def _whose(self, address: VirtualAddress) -> PeerId | None:
        for peer, link in self.links.items():
            if link.has(address):
                return peer
        return None
