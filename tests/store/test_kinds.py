"""Maps, arrays, texts and counters as their users see them, alone and together."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattica.errors import DocumentError, GrantError
from lattica.store.crdt.ledger import MAX_COUNT
from lattica.store.crdt.state import State
from tests.store.mesh import document, meet

# Of one, two, three and four bytes in UTF-8; the last two are surrogate pairs in UTF-16.
LETTERS = ["a", "é", "e\u0301", "\u4e2d", "👍", "👩‍👩‍👧"]
words = st.lists(st.sampled_from(LETTERS), max_size=4).map("".join)
places = st.integers(-9, 9)


# ----------------------------------------------------------------------------------- arrays


@given(st.lists(st.tuples(st.sampled_from("isdx"), places, places, st.lists(st.integers(0, 9)))))
@settings(max_examples=60, deadline=None)
def test_an_array_does_what_a_list_does(steps):
    array, model = document(1).array("a"), []
    for act, start, stop, values in steps:
        if act == "i":
            array.insert(start, values)
            model.insert(start, values)
        elif act == "x":
            array.extend(values)
            model.extend(values)
        elif act == "s":
            array[start:stop] = values
            model[start:stop] = values
        else:
            del array[start:stop]
            del model[start:stop]
        assert array == model
    assert [array[index] for index in range(-len(model), len(model))] == model * 2
    assert array[1:-1:2] == model[1:-1:2]


def test_values_of_an_array_come_back_exactly_on_another_peer():
    one, two = document(1), document(2)
    values = [1, 1.0, True, None, b"\x00", "é", {"a": [2**63]}]
    one.array("a").extend(values)
    meet(one, two)
    assert [(type(v), v) for v in two.array("a")] == [(type(v), v) for v in values]


def test_items_that_two_peers_append_at_once_all_stay_and_stay_together():
    one, two = document(1), document(2)
    one.array("a").append("start")
    meet(one, two)
    for number in range(3):
        one.array("a").append(["one", number])
        two.array("a").append(["two", number])
    meet(one, two)
    start, *rest = one.array("a")
    assert start == "start"
    of_one, of_two = ([[who, number] for number in range(3)] for who in ("one", "two"))
    assert rest in (of_one + of_two, of_two + of_one)


def test_an_item_that_is_not_there_is_an_index_error_and_writes_nothing():
    doc = document(1)
    for act in (
        lambda: doc.array("a")[0],
        lambda: doc.array("a").pop(),
        lambda: doc.array("a").__setitem__(0, 1),
    ):
        with pytest.raises(IndexError):
            act()
    assert doc.heads() == {}


def test_a_slice_is_one_update_and_all_or_nothing():
    doc = document(1)
    doc.array("a").extend(range(5))
    assert sum(doc.heads().values()) == 1
    with pytest.raises(DocumentError):
        doc.array("a")[1:3] = ["fine", object()]
    assert doc.array("a") == [0, 1, 2, 3, 4]


# ------------------------------------------------------------------------------------ texts


@given(st.lists(st.tuples(st.booleans(), places, places, words), max_size=12))
@settings(max_examples=100, deadline=None)
def test_a_text_does_what_a_python_string_does(steps):
    text, model = document(1).text("t"), ""
    for is_insert, start, stop, word in steps:
        begin, end, _ = slice(start, start if is_insert else stop).indices(len(model))
        model = model[:begin] + word + model[max(begin, end) :]
        if is_insert:
            text.insert(start, word)
        else:
            text[start:stop] = word
        assert str(text) == model
        assert len(text) == len(model)


@given(st.lists(st.tuples(st.integers(0, 1), st.booleans(), places, places, words), max_size=20))
@settings(max_examples=100, deadline=None)
def test_texts_of_two_authors_stay_whole_whatever_they_edit(steps):
    """Whoever meets whenever: equal in the end, and no half of a character anywhere."""
    docs = [document(1), document(2)]
    for who, do_meet, start, stop, word in steps:
        docs[who].text("t")[start:stop] = word
        if do_meet:
            meet(*docs)
    meet(*docs)
    assert "\ufffd" not in str(docs[0].text("t"))
    assert str(docs[0].text("t")) == str(docs[1].text("t"))


def test_half_a_character_is_refused():
    text = document(1).text("t")
    text += "👍"
    with pytest.raises(DocumentError, match="half a character"):
        text.insert(0, "\ud83d")
    text.delete(0)
    assert str(text) == ""


def test_words_that_two_peers_type_at_once_are_not_mixed():
    one, two = document(1), document(2)
    one.text("t").append("[]")
    meet(one, two)
    for letter in "👍one":
        one.text("t").insert(len(one.text("t")) - 1, letter)
    for letter in "two👎":
        two.text("t").insert(len(two.text("t")) - 1, letter)
    meet(one, two)
    assert str(one.text("t")) in ("[👍onetwo👎]", "[two👎👍one]")


# --------------------------------------------------------------------------------- counters


def test_no_concurrent_addition_is_lost():
    docs = [document(number) for number in range(1, 5)]
    for number, doc in enumerate(docs):
        for _ in range(10):
            doc.counter("c").add(number)
        doc.counter("c").add(-1)
    meet(*docs)
    assert [doc.counter("c").value for doc in docs] == [10 * (0 + 1 + 2 + 3) - 4] * 4


def test_a_counter_that_counts_on_after_meeting_keeps_what_it_had():
    one, two = document(1), document(2)
    for _ in range(3):
        for doc in (one, two):
            count = doc.counter("c")
            count += 5
            count -= 2
        meet(one, two)
    assert int(one.counter("c")) == 18


def test_a_counter_takes_integers_and_has_a_bound():
    doc = document(1)
    with pytest.raises(DocumentError, match="integers"):
        doc.counter("c").add(1.5)
    doc.counter("c").add(MAX_COUNT - 1)
    with pytest.raises(DocumentError, match="2\\*\\*63"):
        doc.counter("c").add(1)
    assert doc.counter("c").value == MAX_COUNT - 1


# --------------------------------------------------------------------------------- together


def test_one_name_may_stand_for_each_kind():
    one, two = document(1), document(2)
    with one.transaction():
        one.map("x")["k"] = 1
        one.array("x").append(2)
        one.text("x").append("three")
        one.counter("x").add(4)
        one.text("alone").append("hello")
    meet(one, two)
    assert two.to_dict() == {
        "map:x": {"k": 1},
        "array:x": [2],
        "text:x": "three",
        "count:x": 4,
        "alone": "hello",
    }
    assert sum(two.heads().values()) == 1


def test_what_is_inside_a_map_is_shared_however_it_comes_into_being():
    """Peers that make an inner map at once make the same one: neither loses its entries."""
    one, two = document(1), document(2)
    one.map("house").map("room")["chair"] = 1
    two.map("house").map("room")["table"] = 2
    two.map("house").map("room").text("notes").append("hi")
    one.map("house").array("doors").append("front")
    one.map("house").counter("steps").add(3)
    one.map("house")["colour"] = "red"
    meet(one, two)
    assert one.map("house/room") == two.map("house").map("room") == {"chair": 1, "table": 2}
    one.map("house").clear()
    meet(one, two)
    assert two.to_dict() == {
        "house/room": {"chair": 1, "table": 2},
        "house/room/notes": "hi",
        "house/doors": ["front"],
        "house/steps": 3,
    }


@pytest.mark.parametrize("name", ["\n", "x" * 1025, 3, "\ud800"])
def test_what_is_no_name_is_an_error_for_every_kind(name):
    doc = document(1)
    for face in (doc.map, doc.array, doc.text, doc.counter, doc.map("m").map):
        with pytest.raises(DocumentError, match="no name"):
            face(name)


def test_what_is_empty_is_left_out_and_does_not_count_for_the_digest():
    one, two = document(1), document(2)
    before = two.digest()
    one.array("a").append(1)
    one.text("t").append("x")
    one.map("m")["k"] = 1
    one.array("a").clear()
    one.text("t").delete(0)
    one.map("m").clear()
    meet(one, two)
    assert two.to_dict() == {}
    assert two.digest() == before


@pytest.mark.parametrize(
    "write",
    [
        lambda doc: doc.array("a").append(1),
        lambda doc: doc.text("t").append("x"),
        lambda doc: doc.counter("c").add(),
    ],
)
def test_who_may_not_write_changes_nothing_of_any_kind(write):
    doc = document(1, "call")
    with pytest.raises(GrantError):
        write(doc)
    assert doc.to_dict() == {}


def test_a_transaction_that_raises_undoes_every_kind():
    doc = document(1)
    doc.text("t").append("kept 👍")
    doc.array("a").append("kept")
    before = doc.to_dict()

    def write() -> None:
        with doc.transaction():
            doc.text("t").insert(0, "gone")
            doc.array("a").clear()
            doc.counter("c").add(3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert doc.to_dict() == before
    doc.text("t").append("!")  # and what was undone leaves no trace in what follows
    doc.array("a").append(1)
    other = document(2)
    meet(doc, other)
    assert other.to_dict() == {"t": "kept 👍!", "a": ["kept", 1]}


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from("matc"), places, words), max_size=12))
@settings(max_examples=40, deadline=None)
def test_a_snapshot_reads_and_judges_as_what_it_was_made_of(steps):
    docs = [document(1), document(2)]
    for number, (who, kind, at, word) in enumerate(steps):
        doc = docs[who]
        if kind == "m":
            doc.map("x")[str(at)] = word
        elif kind == "a":
            doc.array("x").insert(at, number)
        elif kind == "t":
            doc.text("x")[at : at + 2] = word
        else:
            doc.counter("x").add(at)
        if number % 3 == 2:
            meet(*docs)
    meet(*docs)
    state = docs[0].state
    restored = State(state.client)
    restored.restore(state.snapshot())
    assert restored.digest() == state.digest()
    assert restored.clocks == state.clocks
    assert restored.ledger.encode() == state.ledger.encode()


def test_a_damaged_snapshot_is_an_error():
    doc = document(1)
    doc.text("t").append("x")
    with pytest.raises(DocumentError, match="damaged"):
        State(1).restore(doc.state.snapshot()[:-3])
