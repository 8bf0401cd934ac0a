"""Views of a document's maps through types, and who changed what and when."""

from __future__ import annotations

import datetime

import anyio
import msgspec
import pytest

from lattica.errors import DocumentError
from lattica.store.crdt.kinds import Place
from tests.store.mesh import NOW, document, identity, meet

pytestmark = pytest.mark.anyio


class Worker(msgspec.Struct):
    name: str
    layers: tuple[int, int]
    key: bytes = b""
    since: datetime.datetime | None = None


ANN = Worker("ann", (0, 7), b"\x00\xff", datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC))


def test_a_struct_comes_back_as_it_was_on_another_peer():
    one, two = document(1), document(2)
    one.view("workers", Worker)["a"] = ANN
    one.view("workers", Worker).update({"b": Worker("bob", (8, 9)), "c": Worker("cid", (1, 1))})
    meet(one, two)
    view = two.view("workers", Worker)
    assert view["a"] == ANN
    assert list(view) == ["a", "b", "c"]
    assert sum(one.heads().values()) == 2
    del view["b"]
    assert dict(view) == {"a": ANN, "c": Worker("cid", (1, 1))}
    assert view.author("a") == identity(1).peer_id


def test_clearing_is_one_update_and_removes_what_is_of_another_shape_too():
    one, two = document(1), document(2)
    one.view("workers", Worker)["a"] = ANN
    one.map("workers").update({str(number): number for number in range(3000)})
    one.view("workers", Worker).clear()
    meet(one, two)
    assert two.to_dict() == {}
    assert sum(two.heads().values()) == 3


def test_a_value_of_another_shape_names_its_key_and_does_not_hide_the_others():
    doc = document(1)
    doc.view("workers", Worker)["good"] = ANN
    doc.map("workers")["bad"] = {"name": 3}
    view = doc.view("workers", Worker)
    with pytest.raises(DocumentError, match="'bad' is no Worker"):
        view["bad"]
    assert view.valid() == {"good": ANN}
    assert list(view.invalid()) == ["bad"]
    assert list(view) == ["bad", "good"]


@pytest.mark.parametrize("value", [Worker("x", (1, "2")), {"name": "x"}, object(), 3])
def test_what_is_not_of_the_type_is_not_written(value):
    doc = document(1)
    with pytest.raises(DocumentError, match="'k': this is no Worker"):
        doc.view("workers", Worker)["k"] = value
    assert doc.to_dict() == {}


def test_other_types_than_structs_have_views_too():
    doc = document(1)
    doc.view("ages", int)["ann"] = 41
    doc.map("ages")["bob"] = "old"
    assert doc.view("ages", int).valid() == {"ann": 41}


# ------------------------------------------------------------------------------ who and when


def test_who_wrote_a_key_is_known_whatever_came_before():
    one, two, three = (document(number) for number in (1, 2, 3))
    ids = [identity(number).peer_id for number in (1, 2, 3)]
    one.map("m").update(a=1, b=1, c=1)
    meet(one, two, three)
    two.map("m")["a"] = 1  # the same value: yet it is another's
    three.map("m")["b"] = 3
    two.map("m")["b"] = 2  # at once with the third's; one of them stands
    del one.map("m")["c"]
    meet(one, two, three)
    for doc in (one, two, three):
        authors = doc.map("m")
        assert authors.author("a") == ids[1]
        assert authors.author("b") == ids[authors["b"] - 1]
        with pytest.raises(KeyError):
            authors.author("c")
    with one.transaction(), pytest.raises(DocumentError, match="over"):
        one.map("m").author("a")


async def test_history_tells_who_wrote_where_and_when():
    one, two = document(1), document(2)
    with one.transaction():
        one.map("m")["k"] = 1
        one.array("a").extend([1, 2])
        one.text("t").append("hello")
    meet(one, two)
    two.text("t").delete(0, 2)
    two.counter("c").add(3)
    del two.map("m")["k"]
    meet(one, two)
    first, second = (identity(number).peer_id for number in (1, 2))
    places = [
        {Place("map", "m", "k"), Place("array", "a"), Place("text", "t")},
        {Place("text", "t")},
        {Place("count", "c")},
        {Place("map", "m", "k")},
    ]
    for doc in (one, two):
        history = [revision async for revision in doc.history()]
        assert [(r.author, r.sequence) for r in history] == [
            (first, 1),
            (second, 1),
            (second, 2),
            (second, 3),
        ]
        assert [set(r.places) for r in history] == places
        assert {r.written for r in history} == {NOW}


async def test_a_change_tells_what_was_changed_and_by_whom():
    one, two = document(1), document(2)
    changes = one.watch()
    two.map("m").update(a=1, b=2)
    two.counter("c").add()
    links = [link for link in take(one, two) if link]
    one.notify(links[:1])
    one.notify(links[1:])
    with anyio.fail_after(1):
        change = await anext(changes)
    assert change.authors == {identity(2).peer_id}
    assert change.keys("m") == {"a", "b"}
    assert change.keys("other") == frozenset()
    assert change.places == {
        Place("map", "m", "a"),
        Place("map", "m", "b"),
        Place("count", "c"),
    }


def take(one, two):
    """What one replica accepts of the other's."""
    for envelope in two._replica.missing(one._replica.heads(), limit=10**9).envelopes:
        yield from one._replica.receive([envelope]).links
