"""Whether an update fits what is there: what authors that ignore the rules may not do."""

from __future__ import annotations

import random

import pycrdt
import pytest

from lattica.errors import DocumentError
from lattica.store.crdt.kinds import Id
from lattica.store.crdt.ledger import counter_key
from lattica.store.crdt.state import State
from lattica.store.crdt.update import UpdateFacts, read_update
from lattica.store.crdt.values import encode_value
from tests.store.mesh import document, meet
from tests.store.raw import COUNT, FITTING, FOUNDATION, ONE, entry, update


def apply(state: State, data: bytes) -> None:
    facts = read_update(data)
    assert state.has(facts.needs)
    state.apply(data, facts)


def full_state() -> State:
    """What `FOUNDATION` says."""
    state = State(9)
    apply(state, FOUNDATION)
    return state


@pytest.mark.parametrize("name", FITTING)
def test_what_fits_is_let_in(name):
    apply(full_state(), FITTING[name])


UNFITTING = {
    "text in an array": update(2, 0, entry("x", left=(1, 5))),
    "text in a map": update(2, 0, entry("x", left=(1, 0), has_key=True)),
    "a value in a text": update(2, 0, entry(ONE, left=(1, 9))),
    "text at an array's root": update(2, 0, entry("x", "array:a")),
    "a value at a text's root": update(2, 0, entry(ONE, "text:t")),
    "text at a map's root": update(2, 0, entry("x", "map:m", "a")),
    "two values of a key": update(2, 0, entry([ONE, ONE], "map:m", "a")),
    "something before a key's value": update(2, 0, entry(ONE, right=(1, 0), has_key=True)),
    "a key in an array": update(2, 0, entry(ONE, left=(1, 5), has_key=True)),
    "an item in a map": update(2, 0, entry(ONE, left=(1, 0), has_key=False)),
    "between a text and an array": update(2, 0, entry("x", left=(1, 9), right=(1, 3))),
    "between two that are not neighbours": update(2, 0, entry(ONE, left=(1, 3), right=(1, 5))),
    "the wrong way round": update(2, 0, entry(ONE, left=(1, 5), right=(1, 3))),
    "an end that is none": update(
        2, 0, entry(ONE, left=(1, 3), right=(1, 4)), entry(ONE, left=(2, 0))
    ),
    "a start that is none": update(2, 0, entry(ONE, right=(1, 5))),
    "neighbours of its own that are none": update(
        2, 0, entry([ONE, ONE], left=(1, 5)), entry(ONE, left=(1, 5), right=(2, 1))
    ),
    "the second half of a pair after": update(2, 0, entry("z", left=(1, 7), right=(1, 8))),
    "half a pair deleted": update(2, 0, deletes={1: [(7, 1)]}),
    "the other half deleted": update(2, 0, deletes={1: [(8, 1)]}),
    "a pair of its own split": update(2, 0, entry("👍", left=(1, 9)), entry("z", left=(2, 0))),
    "half of its own pair deleted": update(2, 0, entry("👍", left=(1, 9)), deletes={2: [(0, 1)]}),
    "counting for another": update(2, 0, entry(COUNT, "count:c", counter_key(1))),
    "another's count replaced": update(2, 0, entry(COUNT, left=(1, 10), has_key=True)),
    "another's count deleted": update(2, 0, deletes={1: [(9, 2)]}),
    "a count that is none": update(2, 0, entry(ONE, "count:c", counter_key(2))),
    "a negative count": update(2, 0, entry(encode_value([-1, 0]), "count:c", counter_key(2))),
}


@pytest.mark.parametrize("name", UNFITTING)
def test_what_does_not_fit_is_refused_and_changes_nothing(name):
    state = full_state()
    before = state.digest(), state.ledger.encode(), dict(state.clocks)
    with pytest.raises(DocumentError):
        apply(state, UNFITTING[name])
    assert (state.digest(), state.ledger.encode(), state.clocks) == before


@pytest.mark.parametrize("name", UNFITTING)
def test_a_snapshot_does_not_change_what_is_refused(name):
    state = full_state()
    apply(state, update(2, 0, deletes={1: [(3, 7)]}))  # what is deleted counts all the same
    restored = State(9)
    restored.restore(state.snapshot())
    with pytest.raises(DocumentError):
        apply(restored, UNFITTING[name])


@pytest.mark.parametrize(
    ("kind", "content"), [("array", 1), ("text", "x")], ids=["an array", "a text"]
)
def test_whoever_goes_on_between_what_two_wrote_at_once_is_let_in(kind, content):
    """Neighbours that were never neighbours of those that wrote them: the order decides."""
    one, two, three = (document(number) for number in (1, 2, 3))
    for doc in (one, two):
        for _ in range(3):
            face = getattr(doc, kind)("x")
            face.insert(len(face), content)
    meet(one, two, three)
    face = getattr(three, kind)("x")
    face.insert(3, content)
    meet(one, two, three)
    assert all(doc.state.ledger._order is not None for doc in (one, two, three))
    face.insert(3, content)
    one.map("m")["k"] = 1
    meet(one, two, three)


def test_what_takes_long_to_judge_is_refused_before_it_takes_long(monkeypatch):
    """Each such entry is looked up in the order of the whole sequence."""
    monkeypatch.setattr("lattica.store.crdt.ledger.MAX_LOOKUPS", 3)
    docs = [document(number) for number in range(1, 11)]
    for doc in docs:
        doc.array("x").append(1)
    meet(*docs)
    before = docs[0].to_dict()

    def write(count: int) -> None:
        with docs[0].transaction():
            for place in range(count, 0, -1):
                docs[0].array("x").insert(place, 2)

    with pytest.raises(DocumentError, match="several transactions"):
        write(4)
    assert docs[0].to_dict() == before
    write(3)
    meet(*docs)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 129, 1000])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_many_items_at_once_are_in_order_on_all_peers(count, at):
    one, two = document(1), document(2)
    one.array("x").extend(["first", "last"])
    one.array("x")[at:at] = range(count)
    meet(one, two)
    items: list[object] = ["first", "last"]
    items[at:at] = range(count)
    assert two.array("x") == items
    two.array("x").insert(count // 2, "more")
    meet(one, two)


# ------------------------------------------------------------------- neighbours that were none


class Author:
    """Puts values of its own between any two units, honestly or not."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.clocks = dict.fromkeys(range(1, rng.randint(2, 4) + 1), 0)

    def next(self, order: list[Id]) -> tuple[Id, bytes]:
        client = self.rng.choice(list(self.clocks))
        clock = self.clocks[client]
        ends: list[Id | None] = [None, *order]
        left, right = self.rng.choice(ends), self.rng.choice(ends)
        if left is not None and left == right:
            right = None
        value = encode_value([client, clock])
        return (client, clock), update(client, clock, entry(value, "array:a", None, left, right))


def orders(updates: list[bytes], rng: random.Random) -> set[tuple[Id, ...]]:
    """How pycrdt orders the units, by when it gets the updates."""
    found = set()
    facts = [read_update(data) for data in updates]
    for _ in range(8):
        doc: pycrdt.Doc = pycrdt.Doc()
        clocks: dict[int | None, int] = {}
        todo = list(range(len(updates)))
        while todo:
            index = rng.choice([i for i in todo if is_ready(facts[i], clocks)])
            todo.remove(index)
            doc.apply_update(updates[index])
            clocks[facts[index].client] = facts[index].end
        found.add(tuple(units(doc)))
    return found


def is_ready(facts: UpdateFacts, clocks: dict[int | None, int]) -> bool:
    needs = {**facts.needs, facts.client: facts.start}
    return all(clocks.get(client, 0) >= clock for client, clock in needs.items())


def units(doc: pycrdt.Doc) -> list[Id]:
    items = doc.get("array:a", type=pycrdt.Array).to_py() or []
    return [(data[1], data[2]) for data in items]  # [client, clock], both small


def test_pycrdt_alone_diverges_over_neighbours_that_were_none():
    """The trap; the next test is the guard."""
    diverged = 0
    for seed in range(300):
        rng = random.Random(seed)
        author, doc, updates = Author(rng), pycrdt.Doc(), []
        for _ in range(12):
            unit, data = author.next(units(doc))
            author.clocks[unit[0]] += 1
            doc.apply_update(data)
            updates.append(data)
        diverged += len(orders(updates, rng)) > 1
    assert diverged > 0


def test_what_is_let_in_converges_whenever_it_comes():
    passed = 0
    for seed in range(150):
        rng = random.Random(seed)
        author, state, updates = Author(rng), State(9), []
        for _ in range(60):
            order = units(state._doc)
            unit, data = author.next(order)
            try:
                apply(state, data)
            except DocumentError:
                continue
            author.clocks[unit[0]] += 1
            updates.append(data)
        passed += len(updates)
        assert len(orders(updates, rng)) == 1
    assert passed > 1000
