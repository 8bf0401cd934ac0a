"""The model of a path finds its bandwidth, keeps its queue short, and shares it."""

from __future__ import annotations

import pytest

from lattica.link.bbr import MIN_WINDOW, Phase
from lattica.link.bbr_model import Aggregation, FullPipe, MaxBandwidth, MinRtt, is_too_much
from lattica.path.emulator import Conditions, Pipe
from tests.link.course import Course, Racer, rates

MBIT = 125_000.0  # bytes/s
LONG = Conditions(latency=0.05, rate=20 * MBIT, queue=250_000)  # one bandwidth-delay product


def alone(conditions: Conditions, start: float = 3.0, end: float = 13.0) -> tuple[float, Racer]:
    """The share of the line that one flow gets."""
    course = Course()
    racer = Racer(course, conditions)
    course.at(0.0, racer.push)
    assert conditions.rate is not None
    return rates(course, [racer], start, end)[0] / conditions.rate, racer


def test_a_clean_path_is_filled() -> None:
    share, racer = alone(LONG)
    assert share >= 0.94
    assert racer.model.max_bandwidth.value == pytest.approx(20 * MBIT, rel=0.05)
    assert racer.model.min_rtt.value == pytest.approx(0.1, rel=0.05)
    assert racer.phases == set(Phase)


def test_it_starts_in_less_than_ten_round_trips() -> None:
    share, _ = alone(LONG, start=1.0, end=2.0)
    assert share >= 0.9


def test_a_gigabit_over_a_tenth_of_a_second() -> None:
    course = Course()
    conditions = Conditions(latency=0.05, rate=1000 * MBIT, queue=12_500_000, mtu=16_000)
    racer = Racer(course, conditions, datagram=14_520)
    course.at(0.0, racer.push)
    assert rates(course, [racer], 3.0, 9.0)[0] >= 0.9 * 1000 * MBIT


@pytest.mark.parametrize(("loss", "least"), [(0.005, 0.9), (0.01, 0.85), (0.015, 0.8)])
def test_random_loss_does_not_slow_it(loss: float, least: float) -> None:
    conditions = Conditions(latency=0.05, rate=20 * MBIT, queue=250_000, loss=loss)
    share, racer = alone(conditions)
    assert racer.flow.lost > 0
    assert share >= least


def test_a_deep_queue_stays_mostly_empty() -> None:
    conditions = Conditions(latency=0.05, rate=20 * MBIT, queue=int(20 * MBIT))  # one second
    share, racer = alone(conditions)
    assert share >= 0.93
    rtts = sorted(rtt for at, rtt in racer.rtts if at > 3.0)
    assert rtts[len(rtts) // 2] <= 0.11
    assert rtts[int(len(rtts) * 0.95)] <= 0.2


def test_a_shallow_queue_is_not_flooded() -> None:
    conditions = Conditions(latency=0.05, rate=20 * MBIT, queue=25_000)  # a tenth of the product
    share, racer = alone(conditions)
    assert share >= 0.85
    assert racer.flow.lost <= 0.03 * racer.flow.delivered


@pytest.mark.parametrize("delay", [0.0, 1.0])
def test_two_flows_share_a_line(delay: float) -> None:
    rate = 10 * MBIT
    course = Course(Pipe(rate, 125_000))
    racers = [Racer(course, Conditions(latency=0.05), seed=seed) for seed in range(2)]
    racers[1].model._chance = lambda: 0.9  # as chance has it, they do not probe in step
    for index, racer in enumerate(racers):
        course.at(index * delay, racer.push)
    each = rates(course, racers, 20.0, 40.0)  # the first one has to give way
    assert sum(each) >= 0.9 * rate
    assert min(each) >= 0.25 * sum(each)


def test_a_pause_does_not_shrink_the_estimate() -> None:
    course = Course()
    racer = Racer(course, LONG, wants=lambda now: not 5.0 < now < 25.0)
    course.at(0.0, racer.push)
    course.run(5.0)
    known = racer.model.max_bandwidth.value
    course.run(25.0)
    assert racer.model.max_bandwidth.value == known
    assert rates(course, [racer], 25.2, 26.2)[0] >= 0.85 * 20 * MBIT


def test_an_application_that_sends_little_does_not_shrink_the_estimate() -> None:
    course = Course()

    def wants(now: float) -> bool:
        # A fiftieth of the line's time: little bursts, never enough to see the line's rate.
        return not 5.0 < now < 25.0 or now % 0.5 < 0.01

    racer = Racer(course, LONG, wants=wants)
    course.at(0.0, racer.push)
    course.run(5.0)
    known = racer.model.max_bandwidth.value
    course.run(25.0)
    assert racer.model.max_bandwidth.value >= 0.95 * known


def test_a_faster_path_is_noticed_and_a_slower_one_too() -> None:
    course = Course()
    racer = Racer(course, LONG)
    course.at(0.0, racer.push)
    course.run(5.0)
    racer.direction.conditions = Conditions(latency=0.05, rate=60 * MBIT, queue=750_000)
    assert rates(course, [racer], 20.0, 24.0)[0] >= 0.85 * 60 * MBIT
    racer.direction.conditions = Conditions(latency=0.05, rate=10 * MBIT, queue=125_000)
    assert rates(course, [racer], 34.0, 39.0)[0] >= 0.8 * 10 * MBIT
    late = sorted(rtt for at, rtt in racer.rtts if at > 34.0)
    assert late[len(late) // 2] <= 0.2


def test_what_all_was_lost_begins_small_and_comes_back() -> None:
    course = Course()
    racer = Racer(course, LONG)
    course.at(0.0, racer.push)
    course.run(5.0)
    model, window = racer.model, racer.model.window
    model.on_blackout()
    assert model.window == MIN_WINDOW * racer.datagram
    course.run(5.5)
    assert model.window >= 0.8 * window
    assert rates(course, [racer], 5.7, 7.0)[0] >= 0.85 * 20 * MBIT


def test_the_window_is_bounded_from_above_and_below() -> None:
    course = Course()
    racer = Racer(course, LONG)
    racer.model.limit = 100_000
    course.at(0.0, racer.push)
    course.run(8.0)
    assert racer.model.window <= 100_000
    lossy = Racer(course, Conditions(latency=0.05, rate=20 * MBIT, loss=0.4))
    course.at(8.0, lossy.push)
    course.run(20.0)
    assert lossy.model.window >= MIN_WINDOW * lossy.datagram


def test_the_largest_rate_is_remembered_for_two_cycles() -> None:
    bandwidth = MaxBandwidth()
    bandwidth.update(10.0)
    bandwidth.update(8.0)
    assert bandwidth.value == 10.0
    bandwidth.advance()
    bandwidth.advance()  # nothing was measured: nothing is forgotten
    assert bandwidth.value == 10.0
    bandwidth.update(5.0)
    assert bandwidth.value == 10.0
    bandwidth.advance()
    assert bandwidth.value == 5.0


def test_the_smallest_rtt_is_looked_for_and_in_the_end_forgotten() -> None:
    rtt = MinRtt()
    assert not rtt.update(0.1, 1.0)
    assert not rtt.update(0.2, 2.0)
    assert rtt.value == 0.1
    assert rtt.update(0.2, 6.5)  # not seen for five seconds
    assert rtt.value == 0.1
    rtt.confirm(6.8)
    assert not rtt.update(0.2, 10.0)
    rtt.update(0.2, 11.5)
    assert rtt.value == 0.2  # the path has changed


def test_bunched_acknowledgements_ask_for_more_in_flight() -> None:
    steady, bunched = Aggregation(), Aggregation()
    for step in range(1, 200):
        steady.update(1000, 1_000_000.0, 10**6, step * 0.001)
        if step % 20 == 0:
            bunched.update(20_000, 1_000_000.0, 10**6, step * 0.001)
    assert steady.extra <= 2000
    assert bunched.extra >= 15_000
    for _ in range(10):
        bunched.next_round()
    assert bunched.extra == 0


def test_a_pipe_is_full_after_rounds_without_growth() -> None:
    pipe = FullPipe()
    for rate in (10.0, 20.0, 40.0, 41.0, 42.0):
        assert not pipe.on_round(rate, 1.25, 3)
    assert pipe.on_round(43.0, 1.25, 3)
    pipe.reset(43.0)
    assert not pipe.on_round(60.0, 1.25, 3)


def test_loss_is_judged_by_the_flight_and_forgiven_in_small_numbers() -> None:
    assert not is_too_much(2 * 1452, 20 * 1452, 1452)
    assert is_too_much(3 * 1452, 20 * 1452, 1452)
    assert not is_too_much(20 * 1452, 1000 * 1452, 1452)
    assert is_too_much(23 * 1452, 1000 * 1452, 1452)
