"""Windows follow fast readers on long paths, and stay within what both ends allow."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from lattica.errors import FrameError
from lattica.rpc.credit import GROWTH, LARGEST, Allowance, CreditWindow, Growth

MIB = 1024 * 1024


class Path(NamedTuple):
    rtt: float
    rtt_min: float


def read(
    window: CreditWindow, rate: float, rtt: float, seconds: float = 5.0, least: float | None = None
) -> int:
    """Take bytes at `rate` for so long; the window then."""
    path = Path(rtt, rtt if least is None else least)
    for step in range(1, int(seconds / 0.005)):
        window.taken(int(step * 0.005 * rate), lambda: path, 1.0 + step * 0.005)
    return window.size


def test_a_long_fat_path_gets_the_window_it_needs() -> None:
    assert read(CreditWindow(MIB, Growth()), 12.5e6, 0.1) >= 2 * 1.25e6
    assert read(CreditWindow(MIB, Growth()), 125e6, 0.1) == LARGEST


@pytest.mark.parametrize(("rate", "rtt"), [(1e6, 0.1), (200e6, 0.0005), (12.5e6, 0.0)])
def test_a_slow_reader_and_a_short_path_keep_the_first_window(rate: float, rtt: float) -> None:
    assert read(CreditWindow(MIB, Growth()), rate, rtt) == MIB


def test_queues_at_busy_ends_are_not_taken_for_a_long_path() -> None:
    assert read(CreditWindow(MIB, Growth()), 125e6, 0.02, least=0.001) == MIB


def test_a_path_that_has_become_longer_gets_the_window_it_needs() -> None:
    assert read(CreditWindow(MIB, Growth()), 125e6, 0.1, least=0.001) == LARGEST


def test_a_reader_that_pauses_is_not_taken_for_a_fast_one() -> None:
    window = CreditWindow(MIB, Growth())
    for step in range(1, 20):  # a window at once, each second
        window.taken(step * MIB, lambda: Path(0.1, 0.1), 1.0 + step)
    assert window.size == MIB


def test_the_windows_of_a_link_share_what_they_grow_by() -> None:
    growth = Growth()
    windows = [CreditWindow(MIB, growth) for _ in range(20)]
    for window in windows:
        read(window, 125e6, 0.1)
    assert sum(window.size - MIB for window in windows) <= GROWTH
    for window in windows:
        window.close()
        window.close()
    assert read(CreditWindow(MIB, growth), 125e6, 0.1) == LARGEST


def test_a_closed_window_does_not_grow() -> None:
    growth = Growth()
    window = CreditWindow(MIB, growth)
    window.close()
    assert read(window, 125e6, 0.1) == MIB
    assert growth.take(GROWTH)


def test_a_sender_holds_the_receiver_to_what_windows_can_be() -> None:
    allowance = Allowance()
    allowance.check(3, 10 * MIB, 9 * MIB, MIB, {3})
    allowance.check(3, 9 * MIB + LARGEST, 9 * MIB, MIB, {3})
    with pytest.raises(FrameError, match="a window ahead"):
        allowance.check(3, 11 * MIB + LARGEST, 9 * MIB, MIB, {3})


def test_a_sender_holds_all_streams_of_a_link_to_their_share() -> None:
    allowance, streams = Allowance(), set(range(100))
    allowed = 2 * GROWTH // (7 * MIB)
    for stream in range(allowed):
        allowance.check(stream, 8 * MIB, 0, MIB, streams)
    with pytest.raises(FrameError, match="all windows"):
        allowance.check(allowed, 8 * MIB, 0, MIB, streams)
    allowance = Allowance()
    for stream in range(100):  # each ends before the next begins
        allowance.check(stream, 8 * MIB, 0, MIB, {stream})
