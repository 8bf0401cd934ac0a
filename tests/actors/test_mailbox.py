"""The order of calls, without a process in sight."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lattica.actors.mailbox import Mailbox
from tests.actors.hosting import ALICE, BOB


class Call:
    def __init__(self, name: str) -> None:
        self.name = name


def test_a_call_waits_for_its_callers_earlier_ones() -> None:
    box: Mailbox[Call] = Mailbox()
    one, two, other = Call("1"), Call("2"), Call("other")
    box.add(ALICE, one, complete=False)
    box.add(ALICE, two, complete=True)
    box.add(BOB, other, complete=True)
    assert box.take() is other
    assert box.take() is None
    assert len(box) == 2
    box.complete(ALICE, one)
    assert [box.take(), box.take(), box.take()] == [one, two, None]
    assert len(box) == 0


def test_a_call_that_is_withdrawn_lets_the_next_ones_through() -> None:
    box: Mailbox[Call] = Mailbox()
    one, two, three = Call("1"), Call("2"), Call("3")
    box.add(ALICE, one, complete=False)
    box.add(ALICE, two, complete=True)
    assert box.remove(ALICE, one)
    assert not box.remove(ALICE, one)
    assert box.take() is two
    assert not box.remove(ALICE, two)
    box.add(ALICE, three, complete=True)
    assert box.remove(ALICE, three)
    assert box.take() is None


def test_calls_that_did_not_begin_come_first_again() -> None:
    box: Mailbox[Call] = Mailbox()
    calls = [Call(str(i)) for i in range(4)]
    for call in calls:
        box.add(ALICE, call, complete=True)
    taken = [box.take(), box.take(), box.take()]
    box.put_back(call for call in taken[1:] if call is not None)
    assert [box.take(), box.take(), box.take()] == calls[1:]


def test_clearing_gives_everything_back() -> None:
    box: Mailbox[Call] = Mailbox()
    one, two = Call("1"), Call("2")
    box.add(ALICE, one, complete=True)
    box.add(BOB, two, complete=False)
    assert box.clear() == [one, two]
    assert len(box) == 0
    assert box.take() is None


@given(st.data())
def test_every_order_of_arguments_gives_the_callers_order(data: st.DataObject) -> None:
    box: Mailbox[Call] = Mailbox()
    made: dict[Any, list[Call]] = {ALICE: [], BOB: []}
    waiting: list[tuple[Any, Call]] = []
    taken: list[Call] = []
    for number in range(data.draw(st.integers(0, 12))):
        peer = data.draw(st.sampled_from([ALICE, BOB]))
        complete = data.draw(st.booleans())
        call = Call(str(number))
        made[peer].append(call)
        box.add(peer, call, complete=complete)
        if not complete:
            waiting.append((peer, call))
        if data.draw(st.booleans()) and (found := box.take()) is not None:
            taken.append(found)
    for peer, call in data.draw(st.permutations(waiting)):
        box.complete(peer, call)
    while (found := box.take()) is not None:
        taken.append(found)
    for calls in made.values():
        assert [call for call in taken if call in calls] == calls
