from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lattica.actors.messages import Failure, ObjectId, Value
from lattica.actors.objects import ObjectTable
from lattica.identity.keys import PeerId
from lattica.rpc.buffers import Buffer

ME, OTHER, THIRD = (PeerId(bytes([number]) * 32) for number in (1, 2, 3))


def mine(number: int) -> ObjectId:
    return ObjectId(ME, bytes([number]) * 16)


def theirs(number: int) -> ObjectId:
    return ObjectId(OTHER, bytes([number]) * 16)


def value(size: int = 10, *refs: ObjectId) -> Value:
    return Value(Buffer(bytes(size)), (), refs)


class Table(ObjectTable):
    def __init__(self) -> None:
        self.log: list[tuple[str, ObjectId]] = []
        super().__init__(
            ME,
            on_borrow=lambda each: self.log.append(("borrow", each)),
            on_return=lambda each: self.log.append(("return", each)),
            on_free=lambda each: self.log.append(("free", each)),
        )


def test_a_value_lives_as_long_as_its_last_holder() -> None:
    table = Table()
    table.retain(mine(1))
    table.retain(mine(1))
    table.settle(mine(1), value(10))
    assert table.nbytes == 10
    table.release(mine(1))
    assert table.find(mine(1)) is not None
    table.release(mine(1))
    assert table.find(mine(1)) is None
    assert table.nbytes == 0
    assert table.log == [("free", mine(1))]


def test_what_nobody_holds_is_not_kept() -> None:
    table = Table()
    table.settle(mine(1), value())
    assert len(table) == 0
    assert table.nbytes == 0


def test_the_first_outcome_stands() -> None:
    table = Table()
    slot = table.retain(mine(1))
    table.settle(mine(1), value(1))
    table.settle(mine(1), Failure("cancelled", "late"))
    assert isinstance(slot.outcome, Value)


def test_a_borrower_keeps_a_value_until_it_gives_it_back_or_falls_silent() -> None:
    table = Table()
    table.retain(mine(1))
    table.settle(mine(1), value())
    assert table.lend(mine(1), OTHER, 10.0)
    assert table.lend(mine(1), THIRD, 20.0)
    table.release(mine(1))
    table.take_back(mine(1), OTHER)
    table.expire(19.0)
    assert table.find(mine(1)) is not None
    table.expire(20.0)
    assert table.find(mine(1)) is None


def test_only_our_own_objects_are_lent() -> None:
    table = Table()
    table.retain(theirs(1))
    assert not table.lend(theirs(1), THIRD, 10.0)
    assert not table.lend(mine(9), THIRD, 10.0)


def test_refs_inside_a_value_are_held_with_it() -> None:
    table = Table()
    table.retain(mine(1))
    table.settle(mine(1), value(10, theirs(2)))
    assert table.log == [("borrow", theirs(2))]
    table.release(mine(1))
    assert table.log == [("borrow", theirs(2)), ("free", mine(1)), ("return", theirs(2))]
    assert len(table) == 0


def test_an_object_that_nothing_will_make_is_lost_not_pending() -> None:
    table = Table()
    assert table.is_lost(mine(1))
    table.retain(mine(1))
    assert table.is_lost(mine(1))
    table.expect(mine(1))
    assert not table.is_lost(mine(1))
    assert not table.is_lost(theirs(1))


def test_a_callback_is_called_once_and_can_be_undone() -> None:
    table = Table()
    slot = table.retain(mine(1))
    calls: list[str] = []
    undo = slot.when_ready(lambda: calls.append("undone"))
    slot.when_ready(lambda: calls.append("called"))
    undo()
    table.settle(mine(1), value())
    assert calls == ["called"]
    slot.when_ready(lambda: calls.append("at once"))
    assert calls == ["called", "at once"]


operations = st.lists(
    st.tuples(
        st.sampled_from(["retain", "release", "settle", "lend", "take_back", "expire"]),
        st.integers(1, 4),
    ),
    max_size=60,
)


@given(operations)
def test_whatever_the_order_counts_end_at_nothing(steps: list[tuple[str, int]]) -> None:
    table = Table()
    for step, number in steps:
        object_id = mine(number) if number < 3 else theirs(number)
        match step:
            case "retain":
                table.retain(object_id)
            case "release":
                table.release(object_id)
            case "settle":
                table.settle(object_id, value(number, mine(number % 4 + 1)))
            case "lend":
                table.lend(object_id, THIRD, 5.0)
            case "take_back":
                table.take_back(object_id, THIRD)
            case "expire":
                table.expire(5.0)
    table.expire(10.0)
    held = {each: slot.local for each, slot in list(table._slots.items())}
    for object_id, count in held.items():
        for _ in range(count):
            table.release(object_id)
    for _ in range(200):  # cycles of refs, made above on purpose, are let go one by one
        for object_id in list(table._slots):
            table.release(object_id)
    assert len(table) == 0
    assert table.nbytes == 0
    borrowed = [each for kind, each in table.log if kind == "borrow"]
    returned = [each for kind, each in table.log if kind == "return"]
    assert sorted(map(repr, borrowed)) == sorted(map(repr, returned))
