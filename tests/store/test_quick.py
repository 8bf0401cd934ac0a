"""The quick reader says what the general one says, or nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattica.errors import DocumentError
from lattica.identity import wire
from lattica.store.chains.messages import Update
from lattica.store.crdt.quick import read_quick, read_replacing
from lattica.store.crdt.state import State
from lattica.store.crdt.update import ANY, read_update
from tests.store.mesh import document, identity, meet
from tests.store.raw import entry, update


def bodies() -> list[bytes]:
    """Updates of two authors who write over each other, of every kind."""
    one, two = document(1), document(2)
    for number in range(40):
        for doc in (one, two):
            doc.map("m")[f"key {number % 3}"] = {"n": number, "text": "x" * (number * 9)}
            doc.counter("c").add(number)
            if number % 5 == 0:
                doc.map("é")["ключ"] = None
                doc.map("m").pop(f"key {number % 3}")
                doc.array("a").append(number)
                doc.text("t").append("word")
        if number % 4 == 0:
            meet(one, two)
    links = one._replica.chains[identity(1).peer_id].links
    return [wire.decode(link.envelope.payload, Update).body for link in links]


BODIES = bodies()


def slowly(data: bytes):
    try:
        return read_update(data)
    except DocumentError:
        return "refused"


def quickly(data: bytes):
    try:
        return read_quick(data)
    except DocumentError:
        return "refused"


def replacing(data: bytes) -> bool:
    """Whether it is read as one entry in another's place, and then it must be just that."""
    found = read_replacing(data)
    if found is not None:
        client, start, over, clock = found
        facts = slowly(data)
        assert facts != "refused"
        (entry,), ((*deleted,),) = facts.entries, facts.deletes
        assert (facts.client, facts.start, facts.end) == (client, start, start + 1)
        assert (entry.left, entry.right, entry.place) == ((over, clock), None, None)
        assert (entry.has_key, entry.content, entry.length) == (True, ANY, 1)
        assert deleted == [over, clock, clock + 1]
    return found is not None


def test_what_replaces_an_entry_is_read_more_quickly():
    assert sum(map(replacing, BODIES)) > len(BODIES) * 0.3


def test_what_replaces_an_entry_must_have_come_after_it():
    before = update(5, 3, entry(b"\x01", left=(5, 3), has_key=True), deletes={5: [(3, 1)]})
    with pytest.raises(DocumentError, match="comes after"):
        read_update(before)
    state = State(1)
    assert not state.replace(before, read_replacing(before))
    assert state.clocks == {}


def test_most_updates_of_maps_are_read_quickly():
    quick = [body for body in BODIES if quickly(body) is not None]
    assert len(quick) > len(BODIES) * 0.7


@pytest.mark.parametrize("body", BODIES)
def test_it_agrees_on_what_is_well_formed(body):
    assert quickly(body) in (None, slowly(body))
    replacing(body)


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(BODIES), st.data())
def test_it_agrees_on_what_is_not(body, data):
    body = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        what = data.draw(st.sampled_from(("set", "cut", "insert", "end")))
        value = data.draw(st.sampled_from((0, 1, 0x28, 0x74, 0x7F, 0x80, 0xA8, 0xFF)))
        if what == "set":
            body[at] = value
        elif what == "insert":
            body.insert(at, value)
        elif what == "cut" and len(body) > 1:
            del body[at]
        else:
            body.append(value)
    assert quickly(bytes(body)) in (None, slowly(bytes(body)))
    if slowly(bytes(body)) != "refused" or read_replacing(bytes(body)) is None:
        replacing(bytes(body))
    else:  # all that it leaves to the ledger: that it comes after what it replaces
        client, start, over, clock = read_replacing(bytes(body))
        assert client == over
        assert clock >= start


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_it_agrees_on_noise(noise):
    assert quickly(b"\x01\x01" + noise) in (None, slowly(b"\x01\x01" + noise))
