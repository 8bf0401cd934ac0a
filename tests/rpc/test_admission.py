"""Bounds hold, nobody starves, and each call that waits has exactly one outcome."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lattica.rpc.admission import LONGEST, SHORTEST, Admission, Gate, Limit, Share

Place = tuple[Gate[int], Share]


def gate(limit: int, *, queue: int = 1000, nbytes: int = 10**9) -> Gate[int]:
    return Gate(limit, max_queue=queue, max_queue_bytes=nbytes)


class Machine(RuleBasedStateMachine):
    """Every sequence of arrivals, ends and withdrawals, against the rules by brute force."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Limit(2)
        self.admission: Admission[int] = Admission(4)
        self.gates: list[Gate[int]] = [
            gate(1, queue=3),
            gate(3, nbytes=50),
            Gate(2, max_queue=4, max_queue_bytes=100, pool=self.pool),
            Gate(2, max_queue=0, max_queue_bytes=100, pool=self.pool),
        ]
        self.shares = [Share(3) for _ in range(4)]
        self.ids = itertools.count()
        self.running: dict[int, Place] = {}
        self.queued: dict[int, Place] = {}
        self.outcomes: Counter[int] = Counter()
        self.now = 0.0

    @rule(at=st.integers(0, 3), by=st.integers(0, 3), nbytes=st.integers(0, 60))
    def arrive(self, at: int, by: int, nbytes: int) -> None:
        call, place = next(self.ids), (self.gates[at], self.shares[by])
        if self.admission.enter(*place):
            self.running[call] = place
            return
        self.queued[call] = place
        lines = Counter(self.queued.values())
        refused = self.admission.wait(*place, call, nbytes, self.now)
        for each in refused:
            self.outcomes[each] += 1
            loser = self.queued.pop(each)
            assert loser[0] is place[0]
            if at == 0:  # bounded by count alone: who has more gives way
                assert lines[loser] >= lines[place]

    @precondition(lambda self: self.running)
    @rule(data=st.data(), seconds=st.floats(0, 10))
    def end(self, data: st.DataObject, seconds: float) -> None:
        call = data.draw(st.sampled_from(sorted(self.running)))
        place = self.running.pop(call)
        self.outcomes[call] += 1
        self.now += seconds
        before = {share: share.turn for share in self.shares}
        for started in self.admission.leave(*place, seconds, self.now):
            at, by = self.queued.pop(started)
            older = [i for i, other in self.queued.items() if other == (at, by)]
            assert all(i > started for i in older), "first come, first served within a peer"
            for other_gate, other in set(self.queued.values()):
                if other_gate is at and before[other] < before[by]:
                    assert other.running == other.limit, "whose turn is older goes first"
            before[by] = by.turn
            self.running[started] = (at, by)

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(sorted(self.queued)))
        place = self.queued.pop(call)
        assert self.admission.withdraw(*place, call)
        assert not self.admission.withdraw(*place, call)
        self.outcomes[call] += 1

    @invariant()
    def limits_hold(self) -> None:
        running = Counter(place[0] for place in self.running.values())
        for each in self.gates:
            assert each.running == running[each] <= each.limit
            assert each.queued == sum(place[0] is each for place in self.queued.values())
            assert each.queued <= each.max_queue
            assert each.nbytes <= each.max_queue_bytes or each.queued == 1
            assert SHORTEST <= self.admission.retry_after(each, self.now) <= LONGEST
        by = Counter(place[1] for place in self.running.values())
        assert all(share.running == by[share] <= share.limit for share in self.shares)
        assert self.admission.running == len(self.running) <= self.admission.limit
        assert self.pool.running == running[self.gates[2]] + running[self.gates[3]] <= 2
        assert self.admission.queued == len(self.queued)

    @invariant()
    def nobody_waits_who_could_run(self) -> None:
        if self.admission.running == self.admission.limit:
            return
        for at, by in self.queued.values():
            full = at.running == at.limit or by.running == by.limit
            assert full or (at.pool is not None and at.pool.running == at.pool.limit)

    @invariant()
    def one_outcome_each(self) -> None:
        assert all(n == 1 for n in self.outcomes.values())
        assert not self.outcomes.keys() & (self.running.keys() | self.queued.keys())


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


class Simulation:
    """Calls that take their time at one gate, on a virtual clock."""

    def __init__(self, admission: Admission[int], at: Gate[int]) -> None:
        self.admission = admission
        self.at = at
        self.ends: list[tuple[float, int]] = []
        self.place: dict[int, Share] = {}
        self.seconds: dict[int, float] = {}
        self.arrived: dict[int, float] = {}
        self.waited: dict[int, float] = {}
        self.refused: list[int] = []
        self.now = 0.0

    def call(self, by: Share, seconds: float) -> int:
        call = len(self.place)
        self.place[call], self.seconds[call], self.arrived[call] = by, seconds, self.now
        if self.admission.enter(self.at, by):
            self.start(call)
        else:
            self.refused += self.admission.wait(self.at, by, call, 1, self.now)
        return call

    def start(self, call: int) -> None:
        self.waited[call] = self.now - self.arrived[call]
        heapq.heappush(self.ends, (self.now + self.seconds[call], call))

    def until(self, when: float) -> None:
        while self.ends and self.ends[0][0] <= when:
            self.now, call = heapq.heappop(self.ends)
            took = self.seconds[call]
            for started in self.admission.leave(self.at, self.place[call], took, self.now):
                self.start(started)
        self.now = when


@given(
    limit=st.integers(1, 5),
    flood=st.lists(st.floats(0.1, 1.0), min_size=20, max_size=200),
    arrivals=st.lists(st.floats(0.0, 1.5), min_size=1, max_size=10),
)
def test_a_flood_delays_another_peers_call_by_one_service_time(
    limit: int, flood: list[float], arrivals: list[float]
) -> None:
    simulation = Simulation(Admission(100), gate(limit))
    flooder, other = Share(100), Share(100)
    for seconds in flood:
        simulation.call(flooder, seconds)
    mine = []
    for pause in arrivals:
        simulation.until(simulation.now + pause)
        mine.append(simulation.call(other, 0.0))  # one at a time: each ends before the next
        simulation.until(simulation.now + 1.0)
    assert all(simulation.waited[call] <= 1.0 for call in mine)


@given(st.integers(2, 30), st.integers(1, 4))
def test_peers_that_all_flood_get_the_same(peers: int, limit: int) -> None:
    simulation = Simulation(Admission(100), gate(limit, queue=10_000))
    shares = [Share(100) for _ in range(peers)]
    for share in shares:
        for _ in range(50):
            simulation.call(share, 1.0)
    simulation.until(30.0)
    done = Counter(simulation.place[call] for call in simulation.waited)
    # Whoever came first had all places at once; from then on it goes round.
    assert max(done.values()) - min(done[share] for share in shares) <= limit


def test_one_peer_with_one_call_at_a_time_does_not_starve_a_flood() -> None:
    simulation = Simulation(Admission(100), gate(1))
    flooder, others = Share(100), [Share(100) for _ in range(20)]
    for _ in range(100):
        simulation.call(flooder, 1.0)
    for _ in range(10):
        for share in others:
            simulation.call(share, 1.0)
        simulation.until(simulation.now + 21.0)
    done = Counter(simulation.place[call] for call in simulation.waited)
    assert done[flooder] >= 10
    assert all(done[share] == 10 for share in others)


def test_who_asks_for_less_than_its_part_of_a_full_queue_is_not_refused() -> None:
    simulation = Simulation(Admission(100), gate(1, queue=10))
    flooder, modest = Share(100), Share(100)
    flood = [simulation.call(flooder, 1.0) for _ in range(31)]
    assert simulation.refused == flood[11:], "the newest of the flood"
    mine = [simulation.call(modest, 1.0) for _ in range(5)]
    assert simulation.refused[20:] == flood[10:5:-1]
    over = simulation.call(modest, 1.0)
    assert simulation.refused[25:] == [over]
    simulation.until(100.0)
    assert {*mine, *flood[:6]} == simulation.waited.keys()


def test_bytes_are_bounded_and_the_heaviest_gives_way() -> None:
    admission, at = Admission[str](100), Gate[str](1, max_queue=100, max_queue_bytes=100)
    big, small = Share(100), Share(100)
    assert admission.enter(at, big)
    assert admission.wait(at, big, "huge", 1000, 0.0) == [], "one may wait however large"
    assert admission.wait(at, big, "more", 1, 0.0) == ["more"]
    assert admission.wait(at, small, "small", 10, 0.0) == ["huge"]
    assert admission.wait(at, big, "half", 60, 0.0) == []
    assert admission.wait(at, small, "rest", 30, 0.0) == []
    assert at.nbytes == 100


def test_one_peers_limit_leaves_places_to_others() -> None:
    admission: Admission[int] = Admission(3)
    one, two, other, another = gate(10), gate(10), Share(2), Share(2)
    assert admission.enter(one, other)
    assert admission.enter(two, other)
    assert not admission.enter(one, other)
    assert admission.wait(one, other, 1, 0, 0.0) == []
    assert admission.enter(one, another)
    assert not admission.enter(two, another), "all is full"
    assert admission.wait(two, another, 2, 0, 0.0) == []
    assert list(admission.leave(two, other, 0.1, 0.0)) == [1], "the peer served less recently"
    assert list(admission.leave(one, another, 0.1, 0.0)) == [2]


def test_a_full_pool_holds_back_only_its_own_methods() -> None:
    pool, admission, peer = Limit(1), Admission[int](10), Share(10)
    first = Gate[int](5, max_queue=5, max_queue_bytes=5, pool=pool)
    second = Gate[int](5, max_queue=5, max_queue_bytes=5, pool=pool)
    assert admission.enter(first, peer)
    assert not admission.enter(second, peer)
    assert admission.wait(second, peer, 1, 0, 0.0) == []
    assert admission.enter(gate(1), peer)
    assert list(admission.leave(first, peer, 0.1, 0.0)) == [1]


@pytest.mark.parametrize(("queued", "seconds"), [(1, 0.25), (8, 2.0), (1000, LONGEST)])
def test_retry_after_is_how_long_the_queue_takes(queued: int, seconds: float) -> None:
    simulation = Simulation(Admission(100), gate(2, queue=10_000))
    peer = Share(100)
    for _ in range(20):
        simulation.call(peer, 0.5)
    simulation.until(100.0)
    for _ in range(queued + 2):
        simulation.call(peer, 0.5)
    assert simulation.admission.retry_after(simulation.at, 100.0) == pytest.approx(seconds)
    # Where nothing has gone on for long, that counts for more than what was usual.
    assert simulation.admission.retry_after(simulation.at, 120.0) >= 20.0


def test_what_has_no_queue_is_known_to_be_hopeless_before_the_bytes_come() -> None:
    admission, at, peer = Admission[int](10), gate(1, queue=0), Share(10)
    assert not admission.is_hopeless(at, peer)
    assert admission.enter(at, peer)
    assert admission.is_hopeless(at, peer)
    assert admission.wait(at, peer, 7, 0, 0.0) == [7]
    admission, at = Admission(10), gate(1, queue=2)
    assert admission.enter(at, peer)
    admission.wait(at, peer, 1, 0, 0.0)
    assert not admission.is_hopeless(at, peer)
    admission.wait(at, peer, 2, 0, 0.0)
    assert admission.is_hopeless(at, peer)
    assert not admission.is_hopeless(at, Share(10)), "another peer's call pushes one out"
