"""What pycrdt does to who is not careful, and that Lattica is.

Each test shows the trap on pycrdt alone, then that a document does not fall into it. A test
whose first half fails tells that pycrdt has changed: the guard may then be needed no more.
"""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import weakref

import pycrdt
import pytest

from lattica.store.chains.refusals import RefusedError
from lattica.store.crdt.state import client_id
from lattica.store.crdt.values import encode_value
from tests.store.mesh import (
    NOW,
    document,
    identity,
    meet,
    membership,
    receive,
    replica,
    seal,
    write,
)
from tests.store.raw import FOUNDATION, ONE, entry, update


def bare(client: int) -> pycrdt.Doc:
    return pycrdt.Doc(client_id=client)


def exchange(one: pycrdt.Doc, other: pycrdt.Doc) -> None:
    first, second = one.get_update(), other.get_update()
    one.apply_update(second)
    other.apply_update(first)


def entries(doc: pycrdt.Doc) -> dict[str, bytes]:
    return {key: bytes(value) for key, value in doc.get("map:m", type=pycrdt.Map).items()}


def refusal(body: bytes) -> str:
    """Why a document refuses this of an author that may write."""
    target = replica(2)
    with pytest.raises(RefusedError) as caught:
        receive(target, seal(1, body, shown=membership(identity(1))))
    assert target.counters[f"refused:{caught.value.reason}"] == 1
    assert target.heads() == ()
    return caught.value.reason


# ------------------------------------------------------------------------------- client ids


def test_two_with_one_client_id_diverge_without_a_word():
    one, other = bare(7), bare(7)
    one.get("map:m", type=pycrdt.Map)["k"] = b"one"
    other.get("map:m", type=pycrdt.Map)["k"] = b"other"
    exchange(one, other)
    assert entries(one) != entries(other), "the trap"

    victim = client_id(identity(3).peer_id)
    assert client_id(identity(1).peer_id) != victim
    assert refusal(update(victim, 0, entry(ONE, "map:m", "k"))) == "client"


def test_who_chooses_a_high_client_id_wins_every_map_write():
    for low, high in ((1, 2), (8, 2**53 - 1)):
        one, other = bare(low), bare(high)
        one.get("map:m", type=pycrdt.Map)["k"] = b"low"
        other.get("map:m", type=pycrdt.Map)["k"] = b"high"
        exchange(one, other)
        assert entries(one) == entries(other) == {"k": b"high"}, "the trap"

    assert refusal(update(2**53 - 1, 0, entry(ONE, "map:m", "k"))) == "client"
    ids = [client_id(identity(number).peer_id) for number in range(64)]
    assert max(ids) < 2**53, "what a double holds"
    assert ids != sorted(ids), "no order that anybody chose"


# ------------------------------------------------------------------------------- tombstones


def test_keys_that_come_and_go_leave_a_stone_each():
    doc = bare(1)
    counted = doc.get("map:m", type=pycrdt.Map)
    sizes = []
    for number in range(400):
        counted[f"{number}"] = ONE
        del counted[f"{number}"]
        sizes.append(len(doc.get_update()))
    assert sizes[399] - sizes[199] > 200 * 10, "the trap"

    # A counter has one key for each author, however often that counts.
    one, two = document(1), document(2)
    sizes = []
    for number in range(400):
        (one, two)[number % 2].counter("c").add()
        sizes.append(len(one.state.snapshot()))
    assert sizes[399] - sizes[199] < 20
    meet(one, two)
    assert one.counter("c").value == 400
    assert len(one.state.snapshot()) < 600


# -------------------------------------------------------------------------------- bad bytes


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"\x01\x01\x05", "ValueError"),
        (bytes.fromhex("0101020003ff07010704f09f918d00"), "RuntimeError"),
        (bytes.fromhex("01010188a8840a0174039201000101010a04"), "PanicException"),
    ],
)
def test_bad_bytes_raise_now_this_now_that(body, error):
    doc = bare(9)
    doc.apply_update(FOUNDATION)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - a panic is no Exception
        doc.apply_update(body)
    assert type(caught.value).__name__ == error, "the trap"

    assert refusal(body) in ("malformed", "client")


READ_FOR_EVER = """
import pycrdt
from tests.store.raw import FOUNDATION, entry, update
doc = pycrdt.Doc()
doc.apply_update(FOUNDATION)
doc.apply_update(update(2, 10, entry("👍", left=(1, 4), right=(1, 7))))
print("reading", flush=True)
doc.get("array:a", type=pycrdt.Array).to_py()
"""


def test_an_entry_between_two_roots_makes_reading_go_on_for_ever():
    with subprocess.Popen(
        [sys.executable, "-c", READ_FOR_EVER], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "reading\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(timeout=0.5)  # "the trap"
        finally:
            child.kill()

    one, two = document(1), document(2)
    with one.transaction():
        one.array("a").append(1)
        one.text("t").append("xy")
    meet(one, two)
    first, rogue = (client_id(identity(number).peer_id) for number in (1, 3))
    body = update(rogue, 0, entry("z", left=(first, 0), right=(first, 1)))
    with pytest.raises(RefusedError, match="between two places"):
        receive(two._replica, seal(3, body, shown=membership(identity(3))))


def test_one_root_used_as_two_kinds_is_neither():
    one, other = bare(1), bare(2)
    one.get("x", type=pycrdt.Text).insert(0, "hi")
    array = other.get("x", type=pycrdt.Array)
    array.append(b"item")
    exchange(one, other)
    assert sorted(map(str, array.to_py())) == ["bytearray(b'item')", "h", "i"], "the trap"

    first, second = document(1), document(2)
    first.text("x").append("hi")
    second.array("x").append(b"item")
    meet(first, second)
    assert (str(second.text("x")), second.array("x")[:]) == ("hi", [b"item"])


# ----------------------------------------------------------------------- numbers and letters


def test_numbers_come_back_as_others():
    one, other = bare(1), bare(2)
    one.get("map:m", type=pycrdt.Map).update({"one": 1, "large": 2**60 + 1})
    exchange(one, other)
    read = other.get("map:m", type=pycrdt.Map).to_py()
    assert read is not None
    assert isinstance(read["one"], float), "the trap"

    first, second = document(1), document(2)
    first.map("m").update(one=1, large=2**60 + 1, float=1.0)
    meet(first, second)
    assert [(type(v), v) for v in second.map("m").values()] == [
        (float, 1.0),
        (int, 2**60 + 1),
        (int, 1),
    ]


def test_indices_of_a_text_are_bytes():
    text = bare(1).get("text:t", type=pycrdt.Text)
    text.insert(0, "é👍")
    text.insert(1, "-")
    assert str(text) != "é-👍", "the trap"

    found = document(1).text("t")
    found.append("é👍")
    found.insert(1, "-")
    assert str(found) == "é-👍"


def test_half_a_surrogate_pair_deleted_spoils_the_clocks():
    doc = bare(9)
    doc.apply_update(update(1, 0, entry("x👍y", "text:t")))
    doc.apply_update(update(2, 0, deletes={1: [(1, 1)]}))
    copy = bare(8)
    copy.apply_update(doc.get_update())
    assert copy.get_state() != doc.get_state(), "the trap"

    one, two = document(1), document(2)
    one.text("t").append("x👍y")
    meet(one, two)
    first = client_id(identity(1).peer_id)
    for body in (
        update(9, 0, deletes={first: [(1, 1)]}),
        update(client_id(identity(3).peer_id), 0, entry("z", left=(first, 1), right=(first, 2))),
    ):
        with pytest.raises(RefusedError, match="splits a character"):
            receive(two._replica, seal(3, body, shown=membership(identity(3))))
    two.text("t").delete(1)
    meet(one, two)
    assert str(one.text("t")) == "xy"


def test_what_is_put_between_strangers_lands_in_different_places():
    """The fewest entries that do it; `test_ledger` tries many."""
    first, stranger, third = (client_id(identity(number).peer_id) for number in (1, 3, 2))
    value = [encode_value(number) for number in range(5)]
    ground = update(
        first,
        0,
        entry(value[0], "array:a"),
        entry(value[1], left=(first, 0)),
        entry(value[2], left=(first, 0), right=(first, 1)),
    )
    lie = update(stranger, 0, entry(value[3], right=(first, 2)))  # but that was not the start
    other = update(third, 0, entry(value[4], left=(first, 0)))
    found = []
    for updates in ((ground, lie, other), (ground, other, lie)):
        doc = bare(9)
        for data in updates:
            doc.apply_update(data)
        found.append(doc.get("array:a", type=pycrdt.Array).to_py())
    assert found[0] != found[1], "the trap"

    target = replica(4)
    receive(target, seal(1, ground, shown=membership(identity(1))))
    with pytest.raises(RefusedError, match="an end that was none"):
        receive(target, seal(3, lie, shown=membership(identity(3))))
    receive(target, seal(2, other, shown=membership(identity(2))))


def test_a_document_that_is_dropped_is_freed():
    """Python's collector cannot see a cycle that goes through pycrdt's observers."""
    doc = bare(1)
    doc.observe(lambda event: None)
    kept = weakref.ref(doc)
    del doc
    gc.collect()
    assert kept() is not None, "pycrdt frees it now"
    one = replica(1)
    write(one, "k", encode_value(1))
    with contextlib.suppress(ZeroDivisionError), one.transaction(NOW):
        one.state.map("m")["k"] = encode_value(2)
        raise ZeroDivisionError
    state, inner = weakref.ref(one.state), weakref.ref(one.state._doc)
    del one
    gc.collect()
    assert (state(), inner()) == (None, None)
