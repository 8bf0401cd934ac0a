"""One timer's worth of many deadlines, by a clock that tests move."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from lattica.rpc.deadlines import Deadlines

TICK = 0.005
times = st.floats(0, 100, allow_nan=False)


@given(st.lists(times, max_size=50), st.lists(times, max_size=20))
def test_never_early_and_at_most_a_tick_late(whens: list[float], clock: list[float]) -> None:
    deadlines: Deadlines[int] = Deadlines(TICK)
    for key, when in enumerate(whens):
        deadlines.add(key, when)
    left = dict(enumerate(whens))
    for now in sorted(clock):
        for key in deadlines.due(now):
            assert left.pop(key) <= now + 1e-9
        assert all(when > now - TICK - 1e-9 for when in left.values())
        following = deadlines.next()
        assert (following is None) == (not left)
        assert following is None or following > now
    assert len(deadlines) == len(left)


@given(st.lists(times, min_size=1, max_size=50), st.data())
def test_discarded_keys_never_come_due(whens: list[float], data: st.DataObject) -> None:
    deadlines: Deadlines[int] = Deadlines(TICK)
    slots = {key: deadlines.add(key, when) for key, when in enumerate(whens)}
    gone = data.draw(st.sets(st.sampled_from(sorted(slots))))
    for key in gone:
        deadlines.discard(slots[key], key)
        deadlines.discard(slots[key], key)  # twice is once
    assert set(deadlines.due(1000.0)) == set(slots) - gone
    assert deadlines.next() is None


def test_no_deadline() -> None:
    deadlines: Deadlines[str] = Deadlines(TICK)
    deadlines.discard(deadlines.add("for ever", math.inf), "for ever")
    assert deadlines.next() is None
    assert deadlines.due(1e12) == []
