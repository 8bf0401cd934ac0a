"""Real tables of ways, with sealed probes, through the lab's NATs: plain punching of all kinds."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from itertools import count

import pytest

from lattica.path import addresses as text
from lattica.path.interface import VirtualAddress
from lattica.path.probes import ProbeKeys, Prober
from lattica.path.way import WayEvents, WayKind
from lattica.path.ways import Ways
from lattica.reach.plan import Method
from tests.netlab import kinds
from tests.netlab.nat import Nat, Packet
from tests.reach.oracle import PAIRS, method
from tests.reach.simulation import MAIN, Network, learn

RELAY = VirtualAddress("relay", 1)
BINDING = bytes(32)
DELAY = 0.02  # seconds, one way
CHECK = 0.02


class End:
    """A link's ways at one end. Nothing is lost on the relayed way, which is not played."""

    def __init__(self, world: World, kind: str, number: int, *, is_dialer: bool) -> None:
        self.world = world
        self.network = Network(kind, number, "ways")
        self.public = learn(self.network, start=-1.0).report(-1.0).public
        self.sent = 0
        self.peer: End
        self._by_text: dict[str, VirtualAddress] = {}
        self._by_address: dict[VirtualAddress, str] = {}
        self.ways = Ways(
            RELAY,
            WayKind.RELAYED,
            Prober(ProbeKeys.derive(BINDING, is_dialer=is_dialer), Counter()),
            0.0,
            is_dialer=is_dialer,
            events=WayEvents(),
            size=1200,
            search=lambda *_: None,
        )

    def offer(self, addresses: tuple[str, ...]) -> None:
        for each in addresses:
            self.ways.offer(self._address(each), self.world.now)

    def check(self) -> None:
        self.ways.sent(100)
        self._send(self.ways.check(self.world.now, self.world.now))
        self.world.at(self.world.now + CHECK, self.check)

    def arrived(self, packet: Packet, datagram: bytes) -> None:
        inside = self.network.inbound(packet, self.world.now)
        if inside is not None:
            source = text.join(*inside.source)
            address = self._address(source)
            self._send(self.ways.received(datagram, address, source, self.world.now))

    def _send(self, orders: list[tuple[VirtualAddress, bytes]]) -> None:
        for address, datagram in orders:
            place = self._by_address.get(address)
            if place is not None:
                self.sent += 1
                self.world.carry(
                    self, Packet((self.network.host, MAIN), text.split(place)), datagram
                )

    def _address(self, place: str) -> VirtualAddress:
        if place not in self._by_text:
            made = VirtualAddress("udp", 2 + len(self._by_text))
            self._by_text[place] = made
            self._by_address[made] = place
        return self._by_text[place]


class World:
    def __init__(self, dialer: str, acceptor: str) -> None:
        self.now = 0.0
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self.ends = End(self, dialer, 1, is_dialer=True), End(self, acceptor, 2, is_dialer=False)
        one, other = self.ends
        one.peer, other.peer = other, one
        for end in self.ends:
            end.offer(end.peer.public)
            end.check()

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))

    def carry(self, end: End, packet: Packet, datagram: bytes) -> None:
        out = end.network.outbound(packet, self.now)
        if out is not None:
            self.at(self.now + DELAY, lambda: end.peer.arrived(out, datagram))

    def run(self, until: float) -> None:
        while self._events[0][0] <= until:
            self.now, _, act = heapq.heappop(self._events)
            act()


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_plain_pairs_use_a_direct_way_at_once_and_others_give_up_soon(one: str, other: str) -> None:
    world = World(one, other)
    world.run(1.0)
    direct = [end.ways.way.kind is WayKind.DIRECT for end in world.ends]
    assert direct == [method(one, other) is Method.PLAIN] * 2
    world.run(10.0)
    before = [end.sent for end in world.ends]
    world.run(40.0)
    for end, sent in zip(world.ends, before, strict=True):
        assert end.sent - sent < 30 * 8


def test_two_who_see_each_other_at_ever_new_ports_do_not_chase_them() -> None:
    """Each probe to a new port of the other's makes a new port here, and so on without end."""
    world = World(kinds.SYMMETRIC_OPEN, kinds.SYMMETRIC_OPEN)
    world.run(60.0)
    for end in world.ends:
        box = end.network.boxes[0]
        assert isinstance(box, Nat)
        assert len(box) < 30
        assert len(end.ways.all) < 16
        assert end.ways.way.kind is WayKind.DIRECT
