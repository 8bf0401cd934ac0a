"""Which way a link's packets take: two ends, a clock, and a net that tests cut and slow down."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter

import pytest

from lattica.path.interface import VirtualAddress
from lattica.path.probes import ProbeKeys, Prober
from lattica.path.way import Way, WayEvents, WayKind
from lattica.path.ways import Ways

BINDING = bytes(range(32))
FIRST = "relay"


class End(WayEvents):
    """One end. An address is named by the pair of places it joins: `lan`, `relay`."""

    def __init__(self, net: Net, name: str, *, is_dialer: bool) -> None:
        self.net = net
        self.name = name
        self.counters = Counter[str]()
        self.history: list[str] = []
        self.strandings = 0
        self.given_up: list[str] = []
        self.unnamed: set[str] = set()
        keys = ProbeKeys.derive(BINDING, is_dialer=is_dialer)
        self.heard = 0.0
        self.ways = Ways(
            address(FIRST),
            WayKind.RELAYED,
            Prober(keys, self.counters),
            net.now,
            is_dialer=is_dialer,
            events=self,
            size=1200,
            search=lambda *_: None,
            names=lambda each: each.scheme not in self.unnamed,
            kinds=kind,
        )

    @property
    def uses(self) -> str:
        return self.ways.current.scheme

    def changed(self, old: Way, new: Way) -> None:
        self.history.append(new.address.scheme)

    def closed(self, way: Way) -> None:
        self.given_up.append(way.address.scheme)

    def stranded(self) -> None:
        self.strandings += 1


class Net:
    """Places with one-way delays in seconds; None: nothing passes."""

    def __init__(self) -> None:
        self.now = 100.0
        self.delays: dict[str, float | None] = {FIRST: 0.04}
        self.one_way: set[tuple[str, str]] = set()  # (sender, place) that is cut
        self.count = itertools.count()
        self.events: list[tuple[float, int, End, str, bytes]] = []
        self.a = End(self, "a", is_dialer=True)
        self.b = End(self, "b", is_dialer=False)
        self.probes: Counter[tuple[str, str]] = Counter()
        self.is_talking = False  # packets of the link go both ways

    def send(self, end: End, orders: list[tuple[VirtualAddress, bytes]]) -> None:
        other = self.b if end is self.a else self.a
        for to, datagram in orders:
            place = to.scheme
            self.probes[end.name, place] += 1
            delay = self.delays.get(place)
            if delay is not None and (end.name, place) not in self.one_way:
                item = (self.now + delay, next(self.count), other, place, datagram)
                heapq.heappush(self.events, item)

    def run(self, seconds: float) -> None:
        end_at = self.now + seconds
        while self.now < end_at:
            self.now += 0.01
            while self.events and self.events[0][0] <= self.now:
                _, _, end, place, datagram = heapq.heappop(self.events)
                self.send(end, end.ways.received(datagram, address(place), place, self.now))
            for end in (self.a, self.b):
                other = self.b if end is self.a else self.a
                if self.is_talking:
                    end.ways.sent(1000)
                    if self.delays.get(other.uses) is not None:
                        end.heard = self.now
                if self.now >= end.ways.due:
                    self.send(end, end.ways.check(self.now, end.heard))


def address(place: str) -> VirtualAddress:
    return VirtualAddress(place, 1)


def kind(where: VirtualAddress) -> WayKind:
    if where.scheme.startswith("relay"):
        return WayKind.RELAYED
    return WayKind.STREAM if where.scheme == "tcp" else WayKind.DIRECT


@pytest.fixture
def net() -> Net:
    return Net()


def offer(end: End, place: str, **more: float) -> None:
    end.ways.offer(address(place), end.net.now, **more)


def test_a_direct_way_that_answers_is_taken_by_both_ends(net: Net) -> None:
    net.delays["lan"] = 0.002
    offer(net.a, "lan")
    net.run(0.3)
    assert (net.a.uses, net.b.uses) == ("lan", "lan")
    assert net.a.history == net.b.history == ["lan"]


def test_what_does_not_answer_is_given_up_and_costs_few_probes(net: Net) -> None:
    offer(net.a, "dead")
    net.run(10)
    assert net.a.uses == FIRST
    assert net.a.given_up == ["dead"]
    assert net.probes["a", "dead"] <= 20


def test_a_way_that_only_works_in_one_direction_is_not_taken(net: Net) -> None:
    net.delays["half"] = 0.01
    net.one_way.add(("b", "half"))
    offer(net.a, "half")
    net.run(10)
    assert (net.a.uses, net.b.uses) == (FIRST, FIRST)
    net.one_way = {("a", "half")}
    offer(net.b, "half")
    net.run(10)
    assert (net.a.uses, net.b.uses) == (FIRST, FIRST)


def test_a_dead_way_is_left_within_two_seconds_of_traffic_for_one_that_answers(net: Net) -> None:
    net.delays["lan"] = 0.002
    offer(net.a, "lan")
    net.is_talking = True
    net.run(5)
    assert (net.a.uses, net.b.uses) == ("lan", "lan")
    net.delays["lan"] = None
    net.run(2)
    assert (net.a.uses, net.b.uses) == (FIRST, FIRST)
    assert net.a.strandings == net.b.strandings == 0


def test_an_idle_link_moves_when_it_is_told_to_hurry(net: Net) -> None:
    net.delays["lan"] = 0.002
    offer(net.a, "lan")
    net.run(5)
    net.delays["lan"] = None
    net.a.ways.hurry(net.now)
    net.b.ways.hurry(net.now)
    net.run(1.5)
    assert (net.a.uses, net.b.uses) == (FIRST, FIRST)


def test_without_another_way_it_stays_and_says_so_once_and_goes_on_when_it_is_back(
    net: Net,
) -> None:
    net.is_talking = True
    net.delays[FIRST] = None
    net.run(10)
    assert (net.a.uses, net.a.strandings, net.b.strandings) == (FIRST, 1, 1)
    net.delays[FIRST] = 0.04
    net.run(2)
    assert net.a.ways.way.is_alive
    assert net.b.ways.way.is_alive
    net.delays[FIRST] = None
    net.run(5)
    assert net.a.strandings == 2


def test_a_stranded_link_takes_the_first_way_that_comes(net: Net) -> None:
    net.is_talking = True
    net.delays[FIRST] = None
    net.run(3)
    net.delays["relay-2"] = 0.05
    offer(net.b, "relay-2")
    net.run(1)
    assert (net.a.uses, net.b.uses) == ("relay-2", "relay-2")
    assert FIRST in net.a.given_up


def test_round_trips_that_differ_little_do_not_make_it_flap(net: Net) -> None:
    net.delays |= {"one": 0.020, "two": 0.018, "three": 0.005}
    offer(net.a, "one")
    net.run(1)
    offer(net.a, "two")
    net.run(60)
    assert net.a.history == ["one"]
    offer(net.a, "three")
    net.run(20)
    assert net.a.history == net.b.history == ["one", "three"]


def test_a_slow_direct_way_is_better_than_a_fast_relay_and_tcp_is_in_between(net: Net) -> None:
    net.delays |= {"tcp": 0.05, "slow": 0.15}
    offer(net.a, "tcp")
    net.run(2)
    assert net.b.uses == "tcp"
    offer(net.a, "slow")
    net.run(2)
    assert (net.a.uses, net.b.uses) == ("slow", "slow")


def test_a_host_that_was_not_named_is_only_taken_when_nothing_else_answers(net: Net) -> None:
    """Somebody between forwards probes from an address of his own, faster than they come."""
    net.delays |= {"lan": 0.02, "mallory": 0.001}
    net.a.unnamed.add("mallory")
    net.b.unnamed.add("mallory")
    offer(net.a, "lan")
    net.is_talking = True
    net.run(2)
    net.a.ways.offer(address("mallory"), net.now, is_named=False)
    net.run(5)
    assert (net.a.uses, net.b.uses) == ("lan", "lan")
    net.delays |= {"lan": None, FIRST: None}  # as after a move to another network
    net.run(4)
    assert (net.a.uses, net.b.uses) == ("mallory", "mallory")


def test_an_idle_way_costs_next_to_nothing(net: Net) -> None:
    net.delays["lan"] = 0.002
    offer(net.a, "lan")
    net.run(10)
    net.probes.clear()
    net.run(60)
    assert net.probes.total() <= 2 * 2 * 2 * 4 + 2  # both ends, question and answer


def test_strangers_probes_cannot_fill_the_table(net: Net) -> None:
    for each in range(1000):
        offer(net.a, f"place-{each}", patience=60.0)
    assert len(net.a.ways.all) <= 24
    assert net.a.uses == FIRST


def test_a_way_that_is_lost_for_certain_is_left_at_once(net: Net) -> None:
    net.delays["tcp"] = 0.002
    offer(net.a, "tcp")
    net.run(3)
    net.a.ways.lose(address("tcp"), net.now)
    assert net.a.uses == FIRST


def test_a_sprayed_probe_opens_the_door_it_hits(net: Net) -> None:
    """The other end probes back from where it arrived."""
    net.delays["hit"] = 0.01
    datagram = net.a.ways.spray(net.now, 5.0)
    net.send(net.a, [(address("miss"), datagram), (address("hit"), datagram)])
    net.run(1)
    assert (net.a.uses, net.b.uses) == ("hit", "hit")
