"""Transactions that raise: nothing of them stays, whatever came before."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from lattica.store import Document
from lattica.store.crdt import state
from tests.store.mesh import document, identity, meet, sync


def change(target: Document, rng: random.Random) -> None:
    """Something of any kind, also to what others have written."""
    array, text = target.array("a"), target.text("t")
    match rng.randrange(6):
        case 0:
            target.map("m")[rng.choice("abc")] = rng.random()
        case 1:
            target.map("m").pop(rng.choice("abc"), None)
        case 2:
            array.insert(rng.randint(0, len(array)), rng.random())
        case 3 if len(array):
            del array[rng.randrange(len(array))]
        case 4:
            text.insert(rng.randint(0, len(text)), "é🚀x")
        case _:
            target.counter("c").add(1)


def gives_up(target: Document, *steps: Callable[[], object]) -> None:
    """A transaction that raises after these."""

    def transaction() -> None:
        with target.transaction():
            for step in steps:
                step()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        transaction()


@pytest.mark.parametrize("kept", [0, 200, 10**6])
def test_what_a_transaction_that_raises_has_done_is_gone(monkeypatch, kept):
    monkeypatch.setattr(state, "_KEPT", kept)
    rng = random.Random(kept)
    one, two = document(1), document(2)
    for turn in range(40):
        for each in (one, two):
            change(each, rng)
        before = one.to_dict(), one.digest(), one.heads()
        gives_up(one, *[lambda: change(one, rng)] * rng.randrange(4))
        assert (one.to_dict(), one.digest(), one.heads()) == before
        if turn % 4 == 0:
            meet(one, two)
        if turn % 10 == 9:
            one._replica._rebuild()  # as after a cut
            change(one, rng)
    late = document(3)
    two_alone = two.digest()
    meet(two, late)
    assert late.digest() == two_alone


def test_it_costs_no_reading_of_what_was_there(monkeypatch):
    one = document(1)
    for number in range(20):
        one.map("m")["k"] = number
    bodies = []
    admit, replace = state.State.admit, state.State.replace
    monkeypatch.setattr(state.State, "admit", lambda *args: bodies.append(1) or admit(*args))
    monkeypatch.setattr(state.State, "replace", lambda *args: bodies.append(1) or replace(*args))
    gives_up(one)
    gives_up(one, lambda: one.map("m").set("k", 99))
    assert not bodies
    assert one.map("m")["k"] == 19
    one.map("m")["k"] = 20
    meet(one, document(2))


def test_it_leaves_what_a_cut_has_taken_out_where_it_was():
    one, twin, two, three = (document(number) for number in (1, 1, 2, 3))
    one.map("m")["k"] = 1
    twin.map("m")["k"] = 2
    sync(one._replica, two._replica)
    two.map("m")["k"] = 3  # rests on what will be cut
    sync(twin._replica, three._replica)
    sync(two._replica, three._replica)
    assert three._replica.notices.cut(identity(1).peer_id) is not None
    before = three.digest()
    gives_up(three, lambda: three.map("m").set("k", 4))
    assert three.digest() == before
    three.map("m")["l"] = 5
    sync(two._replica, three._replica)
    assert two.digest() == three.digest()
