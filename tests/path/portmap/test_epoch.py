"""When a gateway counts as having lost its state, RFC 6887 §8.5."""

from __future__ import annotations

import pytest

from lattica.path.portmap.epoch import EpochWatch


@pytest.mark.parametrize(
    ("epoch", "elapsed", "is_same"),
    [
        (1060, 60.0, True),
        (1062, 60.0, True),  # two seconds more than ours: rounding
        (1058, 60.0, True),
        (999, 0.5, True),  # replies may overtake each other
        (998, 0.5, False),
        (0, 60.0, False),  # rebooted
        (1010, 60.0, False),  # rebooted to an epoch that was kept
        (1100, 60.0, False),  # its clock cannot be that fast
        (1000 + 3600 * 15 // 16, 3600.0, True),  # a clock that is slow by a sixteenth
        (1000 + 3600 * 12 // 16, 3600.0, False),
    ],
)
def test_epochs_move_with_our_clock(epoch: int, elapsed: float, is_same: bool) -> None:
    watch = EpochWatch()
    assert watch.take(1000, 50.0)
    assert watch.take(epoch, 50.0 + elapsed) is is_same


def test_a_lost_state_is_told_once() -> None:
    watch = EpochWatch()
    assert watch.take(1000, 0.0)
    assert not watch.take(3, 10.0)
    assert watch.take(13, 20.0)
