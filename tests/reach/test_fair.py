"""How a relay's rate is shared: by whom, how exactly, and what it costs the modest."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.reach import forwarding
from lattica.reach.fair import fill
from tests.reach.relay_bench import Bench, name_of

RATE = 2_000_000.0  # bytes/s
TICK = 0.01


@given(
    amount=st.floats(0.0, 1e6),
    wants=st.lists(st.floats(0.0, 1e5), max_size=20),
)
def test_water_filling_is_max_min_fair(amount: float, wants: list[float]) -> None:
    parts = fill(amount, wants)
    assert sum(parts) == pytest.approx(min(amount, sum(wants)), abs=1e-3)
    assert all(part <= want for part, want in zip(parts, wants, strict=True))
    short = [part for part, want in zip(parts, wants, strict=True) if part < want]
    if short:  # who gets less than wanted gets as much as anybody does
        assert min(short) == pytest.approx(max(parts), rel=1e-9, abs=1e-9)


class Load:
    """Senders with a rate each: bytes/s, in frames of a size."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.senders: list[tuple[bytes, int, float, int]] = []
        self.due: list[float] = []
        self.passed: list[int] = []
        self.lost: list[int] = []
        self._chance = random.Random(1)

    def add(self, session: bytes, source: int, rate: float, size: int = 1000) -> int:
        self.senders.append((session, source, rate, size))
        self.due.append(self._chance.random() * size)
        self.passed.append(0)
        self.lost.append(0)
        return len(self.senders) - 1

    def run(self, seconds: float) -> None:
        """In batches, one sender after another, another one first each time."""
        for tick in range(round(seconds / TICK)):
            self.bench.now += TICK
            if tick % 100 == 0:
                self.bench.relay.check()
            order = list(range(len(self.senders)))
            self._chance.shuffle(order)
            for at in order:
                session, source, rate, size = self.senders[at]
                self.due[at] += rate * TICK
                count, self.due[at] = int(self.due[at] // size), self.due[at] % size
                if count:
                    went = self.bench.give(session, source, [size] * count)
                    self.passed[at] += went * size
                    self.lost[at] += count - went

    def forget(self) -> None:
        """Count from now."""
        self.passed = [0] * len(self.passed)
        self.lost = [0] * len(self.lost)


def crowd(pairs: int, **limits: float) -> tuple[Bench, Load]:
    """Pairs `0-1`, `2-3`, …, each with a session."""
    limits = {"rate": RATE, "rate_per_peer": RATE, "burst": 200_000, "min_burst": 8_000} | limits
    bench = Bench(2 * pairs, **limits)
    for pair in range(pairs):
        bench.link(2 * pair, 2 * pair + 1, pair)
    return bench, Load(bench)


def test_a_greedy_pair_costs_the_modest_not_one_frame() -> None:
    """100 sessions: one sends 50 times its share, 99 send 15 kB/s of their 20 each."""
    bench, load = crowd(100)
    greedy = load.add(name_of(0), 0, 50 * RATE / 100)
    modest = [load.add(name_of(pair), 2 * pair, 15_000.0) for pair in range(1, 100)]
    load.run(2.0)
    assert sum(load.lost[at] for at in modest) == 0
    load.forget()
    load.run(10.0)
    assert sum(load.lost[at] for at in modest) == 0
    assert min(load.passed[at] for at in modest) >= 0.99 * 150_000 - 1000
    left = RATE * 10 - 99 * 150_000
    assert load.passed[greedy] == pytest.approx(left, rel=0.10)  # lent, all of it
    assert sum(load.passed) <= RATE * 10 + bench.config.burst + 100 * bench.config.min_burst
    bench.assert_adds_up()


def test_a_modest_pair_that_comes_late_loses_nothing_either() -> None:
    _, load = crowd(100)
    for pair in range(99):
        load.add(name_of(pair), 2 * pair, RATE / 2)
    load.run(2.0)
    late = load.add(name_of(99), 198, 15_000.0)
    load.run(3.0)
    assert load.lost[late] == 0
    assert load.passed[late] > 40_000


def test_who_wants_more_than_there_is_gets_equal_shares() -> None:
    _, load = crowd(100)
    for pair in range(100):  # some want twice their share, some a hundred times
        load.add(name_of(pair), 2 * pair, RATE / 100 * (2 if pair % 2 else 100))
    load.run(1.0)
    load.forget()
    load.run(10.0)
    assert all(each == pytest.approx(RATE / 10, rel=0.10) for each in load.passed)
    assert sum(load.passed) == pytest.approx(RATE * 10, rel=0.02)


def test_many_sessions_of_one_peer_do_not_help_it() -> None:
    bench = Bench(24, rate=RATE, rate_per_peer=RATE, burst=100_000, min_burst=8_000)
    load = Load(bench)
    for number in range(1, 21):
        load.add(bench.link(0, number, number), 0, RATE)
    single = load.add(bench.link(22, 23, 22), 22, RATE)
    load.run(1.0)
    load.forget()
    load.run(5.0)
    assert load.passed[single] == pytest.approx(RATE * 5 / 2, rel=0.05)
    for at in range(20):
        assert load.passed[at] == pytest.approx(RATE * 5 / 40, rel=0.10)


def test_more_sessions_of_one_pair_share_its_part() -> None:
    bench = Bench(3, rate=RATE, rate_per_peer=RATE, burst=50_000, min_burst=8_000)
    load = Load(bench)
    many = [load.add(bench.link(0, 1, number), 0, RATE) for number in range(4)]
    one = load.add(bench.link(0, 2, 9), 0, RATE)
    load.run(1.0)
    load.forget()
    load.run(5.0)
    assert load.passed[one] == pytest.approx(RATE * 5 / 2, rel=0.05)
    assert sum(load.passed[at] for at in many) == pytest.approx(RATE * 5 / 2, rel=0.05)


def test_clients_of_one_server_do_not_starve_each_other() -> None:
    """What comes back is counted to who asked, not to the server that all ask."""
    bench = Bench(11, rate=RATE, rate_per_peer=RATE, burst=100_000, min_burst=8_000)
    load = Load(bench)
    for client in range(1, 11):
        load.add(bench.link(client, 0, client), 0, RATE if client == 1 else 100_000.0)
    load.run(5.0)
    assert sum(load.lost[1:]) == 0
    assert load.passed[0] == pytest.approx(RATE * 5 - 9 * 500_000, rel=0.10)


def test_one_peer_never_gets_more_than_its_own_limit() -> None:
    bench, load = crowd(1, rate_per_peer=RATE / 4)
    load.add(name_of(0), 0, RATE)
    load.add(name_of(0), 1, RATE)
    load.run(10.0)
    most = RATE / 4 * 10 + bench.config.burst + 2 * bench.config.min_burst
    assert RATE / 4 * 10 <= sum(load.passed) <= most


def test_the_total_keeps_to_the_rate_in_every_second() -> None:
    bench, load = crowd(20)
    for pair in range(20):
        load.add(name_of(pair), 2 * pair, RATE)
    for _ in range(5):
        load.run(1.0)
        most = RATE + bench.config.burst + 20 * bench.config.min_burst
        assert sum(load.passed) <= most
        load.forget()


def test_an_idle_pair_may_burst() -> None:
    bench, load = crowd(2)
    load.run(0.1)
    assert bench.give(name_of(0), 0, [1000] * 50) == 50


def test_a_pair_may_burst_again_when_the_others_have_gone_quiet() -> None:
    bench, _ = crowd(100)
    for pair in range(100):
        assert bench.give(name_of(pair), 2 * pair, [100]) == 1
    bench.wait(0.5)
    assert bench.give(name_of(0), 0, [1000] * 50) < 15
    bench.wait(4.0)
    assert bench.give(name_of(0), 0, [1000] * 50) == 50


def test_a_closed_session_has_no_part_in_the_rate() -> None:
    bench, _ = crowd(100)
    for pair in range(100):
        assert bench.give(name_of(pair), 2 * pair, [100]) == 1
    for pair in range(1, 100):
        bench.relay.close(name_of(pair), bench.peers[2 * pair])
    bench.now += 0.5
    assert bench.give(name_of(0), 0, [1000] * 50) == 50


def test_sessions_that_come_and_go_leave_nothing_owed() -> None:
    """What they had and did not use is the next one's."""
    bench = Bench(2, rate=1000.0, rate_per_peer=1000.0, burst=20_000, min_burst=8_000)
    for session in range(20):
        name = bench.link(0, 1, session)
        assert bench.give(name, 0, [300]) == 1
        bench.relay.close(name, bench.peers[0])


def test_what_newcomers_are_lent_does_not_stop_those_who_were_there() -> None:
    bench, _ = crowd(100, burst=2_000)
    before = 0
    for step in range(300):
        if step == 100:
            for pair in range(1, 100):
                assert bench.give(name_of(pair), 2 * pair, [10]) == 1
            before = bench.out
        bench.now += 0.001
        bench.give(name_of(0), 0, [1000] * 4)
    # 800 kB were lent: half of what 0.2 s make pays for it.
    assert (bench.out - before) * 1000 == pytest.approx(RATE * 0.2 / 2, rel=0.15)


@pytest.mark.parametrize("size", [25, 255])
def test_signs_of_life_pass_where_bulk_has_used_up_everything(size: int) -> None:
    _, load = crowd(2)
    for pair in range(2):
        load.add(name_of(pair), 2 * pair, 20 * RATE)
    beats = load.add(name_of(0), 0, 20.0 * size, size)
    load.run(10.0)
    assert load.lost[beats] == 0
    assert load.passed[beats] >= 190 * size


def test_small_frames_are_not_a_way_around_the_rate() -> None:
    bench, load = crowd(2)
    load.add(name_of(0), 0, 2 * RATE, 250)
    load.add(name_of(1), 2, 2 * RATE, 250)
    load.run(1.0)
    load.forget()
    load.run(5.0)
    assert sum(load.passed) == pytest.approx(RATE * 5, rel=0.02)
    assert bench.counters[forwarding.OVER_RATE] > 0


def test_pauses_do_not_earn_more_than_going_on() -> None:
    """Who stops until its bucket is given back, and starts anew, again and again."""
    bench, load = crowd(10)
    for pair in range(10):
        load.add(name_of(pair), 2 * pair, RATE)
    load.run(1.0)
    load.forget()
    for _ in range(4):
        rest = load.senders[0]
        load.senders[0] = (rest[0], rest[1], 0.0, rest[3])
        load.run(3.5)
        load.senders[0] = rest
        load.run(0.5)
    share = RATE * 16 / 10
    assert load.passed[0] < share / 2
    assert all(each >= share * 0.98 for each in load.passed[1:])
    bench.assert_adds_up()
