"""Delivery rates are measured truly, and packets leave at the rate asked for."""

from __future__ import annotations

import pytest

from lattica.link.delivery import Flow
from lattica.link.pacing import CATCH_UP, IDLE_BURST, Pacer

SIZE = 1000


def paced(pacer: Pacer, seconds: float, *, late: float = 0.0) -> float:
    """Bytes/s that leave when the timer is `late`, with always something to send."""
    now, sent = 1.0, 0
    while now < 1.0 + seconds:
        at = pacer.next_send_time(now)
        if at is None:
            pacer.update_after_send(now)
            pacer.sent(SIZE)
            sent += SIZE
        else:
            assert at > now
            now = at + late
    return sent / seconds


@pytest.mark.parametrize("rate", [20_000.0, 1_000_000.0, 100_000_000.0])
@pytest.mark.parametrize("late", [0.0, 0.002, 0.02])
def test_the_rate_is_kept_also_when_timers_are_late(rate: float, late: float) -> None:
    pacer = Pacer(SIZE)
    pacer.set_rate(rate)
    assert paced(pacer, 5.0, late=late) == pytest.approx(rate, rel=0.12)


def test_a_stall_is_not_made_good_by_a_flood() -> None:
    pacer = Pacer(SIZE)
    pacer.set_rate(1_000_000.0)
    paced(pacer, 1.0)
    burst, now = 0, 10.0
    while pacer.next_send_time(now) is None:
        pacer.update_after_send(now)
        pacer.sent(SIZE)
        burst += SIZE
    assert burst <= 1_000_000 * CATCH_UP + SIZE


def test_after_a_pause_only_a_small_burst_leaves() -> None:
    pacer = Pacer(SIZE)
    pacer.set_rate(100_000_000.0)
    assert pacer.next_send_time(1.0) is None
    pacer.update_after_send(1.0)
    pacer.sent(SIZE)
    burst, now = 0, 10.0
    while pacer.next_send_time(now) is None:
        pacer.update_after_send(now)
        pacer.sent(SIZE)
        burst += SIZE
    assert burst <= IDLE_BURST * SIZE


def test_packets_that_are_small_or_free_cost_what_they_are() -> None:
    pacer = Pacer(SIZE)
    pacer.set_rate(100_000.0)
    now = 1.0
    for _ in range(1000):  # 50 bytes each millisecond: half of the rate
        now += 0.001
        assert pacer.next_send_time(now) is None
        pacer.update_after_send(now)
        pacer.sent(50)
    for _ in range(1000):  # acknowledgements are not counted
        now += 0.001
        assert pacer.next_send_time(now) is None
        pacer.update_after_send(now)


def test_without_a_rate_nothing_is_held_back() -> None:
    pacer = Pacer(SIZE)
    for _ in range(10_000):
        assert pacer.next_send_time(1.0) is None
        pacer.update_after_send(1.0)
        pacer.sent(SIZE)


def test_a_sample_is_what_arrived_during_a_flight() -> None:
    flow = Flow()
    packets = []
    for step in range(60):  # one packet each 10 ms, 100 ms to the acknowledgement
        now = step * 0.01
        packets.append(flow.sent(SIZE, now))
        if step >= 10:
            flow.acked(packets[step - 10], now)
            sample = flow.take_sample(now)
            assert sample is not None
            assert sample.acked == SIZE
            assert not sample.is_app_limited
            if step > 20:  # before, the flight began with the flow
                assert sample.rate == pytest.approx(SIZE / 0.01, rel=0.01)
                assert sample.delivered == pytest.approx(10 * SIZE, abs=SIZE)
    assert flow.in_flight == 10 * SIZE
    assert flow.delivered == 50 * SIZE
    assert flow.take_sample(1.0) is None


def test_a_burst_of_acknowledgements_is_not_a_fast_path() -> None:
    flow = Flow()
    for packet in [flow.sent(SIZE, index * 0.01) for index in range(20)]:
        flow.acked(packet, 0.3)  # all at once, by a path that holds them back
    sample = flow.take_sample(0.3)
    assert sample is not None
    assert sample.acked == 20 * SIZE
    assert sample.rate <= 20 * SIZE / 0.19


def test_what_was_sent_for_want_of_more_is_marked() -> None:
    flow = Flow()
    first = flow.sent(SIZE, 0.0)
    flow.ran_dry()
    second = flow.sent(SIZE, 0.05)
    assert not first.is_app_limited
    assert second.is_app_limited
    flow.acked(first, 0.1)
    assert flow.is_app_limited
    flow.acked(second, 0.15)
    third = flow.sent(SIZE, 0.2)
    assert not third.is_app_limited


def test_loss_during_a_flight_is_counted_to_it() -> None:
    flow = Flow()
    packets = [flow.sent(SIZE, index * 0.001) for index in range(10)]
    for lost in packets[2:4]:
        flow.gone(lost, is_lost=True)
    flow.gone(packets[4], is_lost=False)
    flow.acked(packets[9], 0.1)
    sample = flow.take_sample(0.1)
    assert sample is not None
    assert sample.lost == 2 * SIZE
    assert flow.in_flight == 6 * SIZE
