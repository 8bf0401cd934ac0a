"""The search for the datagram size: sizes found, few probes, black holes, no false alarms."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.path.mtu import BASE, PRECISION, SIZES, MtuSearch, MtuTimers, Phase

LIMIT = 61_440
RTT = 0.05
TIMERS = MtuTimers(probe_timeout=0.1, confirm_every=1.0, raise_every=600.0)


class Line:
    """Carries a search's probes: an MTU, a round-trip time, a chance of loss."""

    def __init__(
        self,
        mtu: int,
        *,
        start: int = BASE,
        limit: int = LIMIT,
        interface: int | None = None,
        loss: float = 0.0,
        seed: int = 1,
    ) -> None:
        self.mtu = mtu
        self.interface = interface  # what this machine itself refuses to send
        self.loss = loss
        self.now = 100.0
        self.search = MtuSearch(self.now, start=start, limit=limit, timers=TIMERS)
        self.probes: list[int] = []
        self._random = random.Random(seed)
        self._replies: list[tuple[float, int]] = []

    def run(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> Line:
        """Let time pass in ticks of 10 ms, until a condition holds."""
        end = self.now + seconds
        while self.now < end and not until():
            self._send()
            self.now += 0.01
            while self._replies and self._replies[0][0] <= self.now:
                self.search.arrived(heapq.heappop(self._replies)[1], self.now)
                self._send()
        return self

    def complete(self) -> Line:
        self.run(60, until=lambda: self.search.phase is Phase.COMPLETE)
        assert self.search.phase is Phase.COMPLETE
        return self

    def _send(self) -> None:
        if self.now < self.search.due:
            return
        for size in self.search.probes(self.now, RTT):
            self.probes.append(size)
            if self.interface is not None and size > self.interface:
                self.search.too_big(size, self.now)
            elif size <= self.mtu and self._random.random() >= self.loss:
                heapq.heappush(self._replies, (self.now + RTT, size))


@pytest.mark.parametrize("mtu", SIZES)
def test_sizes_that_networks_are_built_for_are_found_in_one_round_trip(mtu: int) -> None:
    line = Line(mtu).run(2.5 * RTT)
    assert line.search.size == mtu


@given(st.integers(BASE, 20_000), st.integers(BASE, LIMIT))
def test_any_size_is_found_within_the_precision_and_never_overrun(mtu: int, limit: int) -> None:
    line = Line(mtu, limit=limit).complete()
    best = min(mtu, limit)
    assert best - PRECISION <= line.search.size <= best
    assert max(line.probes, default=0) <= limit
    assert len(line.probes) <= 60


def test_an_ethernet_takes_few_probes_where_the_interface_says_what_it_refuses() -> None:
    line = Line(1472, interface=1472).complete()
    assert line.search.size == 1472
    assert [size for size in line.probes if size <= 1472] == [1232, 1392, 1452, 1472]
    assert line.now - 100.0 < 0.5


@pytest.mark.parametrize("seed", range(20))
def test_lost_probes_are_not_taken_for_the_limit(seed: int) -> None:
    line = Line(8_952, loss=0.1, seed=seed).complete()
    assert line.search.size >= 8_952


def test_a_finished_search_is_quiet_and_looks_again_after_ten_minutes() -> None:
    line = Line(1472).complete()
    count = len(line.probes)
    line.mtu = 9_000
    line.run(595)
    assert len(line.probes) == count
    assert line.search.size == 1472
    line.run(10)
    assert len(line.probes) == count, "nobody could use more"
    line.search.used()
    line.run(5)
    assert 9_000 - PRECISION <= line.search.size <= 9_000


def test_nothing_is_probed_beyond_a_limit_that_is_reached() -> None:
    line = Line(LIMIT).complete()
    assert line.search.size == LIMIT
    assert line.search.due == float("inf")


def test_a_shrunk_path_is_found_out_and_the_search_begins_anew() -> None:
    line = Line(8_952).complete()
    line.mtu = 1452
    started = line.now
    line.search.used()
    line.run(5, until=lambda: line.search.size < 8_952)
    assert line.search.size == BASE
    assert line.now - started < 2.0
    assert line.search.black_holes == 1
    line.complete()
    assert line.search.size == 1452


def test_suspicion_finds_a_shrunk_path_in_three_timeouts() -> None:
    line = Line(8_952).complete()
    line.mtu = 1300
    started = line.now
    line.search.suspect()
    line.run(5, until=lambda: line.search.size == BASE)
    assert line.now - started < 3 * 3 * RTT + 0.1


def test_a_refused_send_shrinks_at_once() -> None:
    line = Line(8_952).complete()
    line.search.too_big(8_952, line.now)
    assert line.search.size == BASE
    line.mtu = line.interface = 1472
    line.complete()
    assert line.search.size == 1472
    line.search.too_big(4_000, line.now)  # told late, of a datagram sent before
    assert line.search.size == 1472
    line.search.too_big(600, line.now)  # then nothing helps
    assert line.search.size == 1472


@pytest.mark.parametrize("loss", [0.02, 0.2])
def test_loss_is_not_a_black_hole(loss: float) -> None:
    line = Line(1472).complete()
    line.loss = loss
    for _ in range(300):
        line.search.used()
        line.run(1.0)
    assert line.search.black_holes <= (0 if loss < 0.1 else 3)


def test_a_blackout_is_not_a_black_hole() -> None:
    line = Line(1472).complete()
    line.mtu = 0
    line.search.used()
    line.run(10)
    assert line.search.size == 1472
    line.mtu = 1472
    line.run(2)
    assert line.search.size == 1472
    assert line.search.black_holes == 0


def test_an_unused_size_is_not_confirmed_again_and_again() -> None:
    line = Line(LIMIT).complete()
    count = len(line.probes)
    line.run(100)
    assert len(line.probes) == count
    line.search.used()
    line.run(10)
    assert len(line.probes) == count + 1  # once for each use


def test_a_size_taken_on_trust_is_checked_first() -> None:
    assert Line(LIMIT, start=LIMIT).run(1).probes == [LIMIT]
    line = Line(1500, start=LIMIT)
    line.run(2, until=lambda: line.search.size < LIMIT)
    assert line.search.size == BASE
    line.complete()
    assert 1500 - PRECISION <= line.search.size <= 1500


def test_a_late_reply_still_counts() -> None:
    search = MtuSearch(0.0, limit=LIMIT, timers=TIMERS)
    search.probes(0.0, 0.0)
    for now in (0.2, 0.4, 0.6, 0.8):
        search.probes(now, 0.0)
    search.arrived(8_952, 1.0)
    assert search.size == 8_952
    search.arrived(1232, 1.1)  # of an earlier round
    assert search.size == 8_952


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["arrived", "too_big", "used", "suspect", "time"]),
            st.integers(0, 20_000),
        ),
        max_size=60,
    )
)
def test_whatever_happens_the_size_stays_within_its_bounds(events: list[tuple[str, int]]) -> None:
    search, now = MtuSearch(0.0, start=4_000, limit=9_000, timers=TIMERS), 0.0
    for event, number in events:
        if event == "arrived":
            search.arrived(number, now)
        elif event == "too_big":
            search.too_big(number, now)
        elif event == "used":
            search.used()
        elif event == "suspect":
            search.suspect()
        else:
            now += number / 10_000
        sizes = search.probes(now, RTT)
        assert all(BASE <= size <= 9_000 for size in sizes)
        assert len(sizes) <= 10
        assert BASE <= search.size <= 9_000
