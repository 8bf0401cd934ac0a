"""What is let through to pycrdt, and what is not."""

from __future__ import annotations

import pycrdt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattica.errors import DocumentError
from lattica.store.crdt.kinds import MAX_NAME
from lattica.store.crdt.update import read_update
from lattica.store.crdt.values import decode_value, encode_value

ONE = encode_value(1)

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def make_doc(client: int) -> tuple[pycrdt.Doc, pycrdt.Map, list[bytes]]:
    updates: list[bytes] = []
    doc = pycrdt.Doc(client_id=client)
    doc.observe(lambda event: updates.append(event.update))
    return doc, doc.get("map:m", type=pycrdt.Map), updates


@given(plain)
@settings(max_examples=150, deadline=None)
def test_values_come_back_exactly_as_they_were(value):
    back = decode_value(encode_value(value))
    assert back == value
    assert type(back) is type(value)


def test_equal_dicts_have_equal_bytes():
    assert encode_value({"b": 1, "a": [2.0]}) == encode_value({"a": [2.0], "b": 1})


@pytest.mark.parametrize("value", [object(), 2**64, {"a": {1: object()}}, {1: 1, "a": 2}, 1j])
def test_what_is_not_plain_is_named_and_refused(value):
    with pytest.raises(DocumentError, match=type(value).__name__):
        encode_value(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01\x01",  # two values
        b"\xcc\x01",  # 1 in two bytes
        b"\xca\x3f\x80\x00\x00",  # a 32-bit float
        b"\xd4\x05\x00",  # an extension type
        b"\x82\xa1b\x01\xa1a\x01",  # keys out of order
        b"\xc1",
        b"\x91" * 5000,
    ],
)
def test_a_value_that_is_not_canonical_is_refused(data):
    with pytest.raises(DocumentError):
        decode_value(data)


step = st.tuples(st.integers(0, 1), st.sampled_from("abc"), st.integers(0, 3))


@given(st.lists(st.lists(step, min_size=1, max_size=5), max_size=12))
@settings(max_examples=150, deadline=None)
def test_what_two_authors_write_is_read_as_pycrdt_reads_it(transactions):
    """The facts agree with the state vector that pycrdt ends up with."""
    docs = [make_doc(2**53 - 1), make_doc(7)]
    clocks: dict[int, int] = {}
    for number, steps in enumerate(transactions):
        doc, entries, updates = docs[number % 2]
        other = docs[1 - number % 2][0]
        updates.clear()
        with doc.transaction():
            for kind, key, value in steps:
                if kind:
                    entries[key] = encode_value(value)
                elif key in entries:
                    del entries[key]
        if not updates:
            continue
        facts = read_update(updates[0])
        assert all(clocks.get(client, 0) >= clock for client, clock in facts.needs.items())
        if facts.client is not None:
            assert facts.client == doc.client_id
            assert facts.start == clocks.get(facts.client, 0)
            clocks[facts.client] = facts.end
        other.apply_update(updates[0])
        states = {pycrdt.Doc.get_state(one[0]) for one in docs}
        assert len({len(state) for state in states}) == 1
        assert state_vector(other.get_state()) == clocks


def state_vector(data: bytes) -> dict[int, int]:
    numbers, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    return dict(zip(numbers[1::2], numbers[2::2], strict=True))


def test_no_mangled_update_escapes_or_confuses_pycrdt():
    """Every one is refused, or what is let through is applied without an error."""
    import random

    random.seed(3)
    doc, entries, updates = make_doc(5)
    for value in range(3):
        with doc.transaction():
            entries["a"] = encode_value(value)
            entries["b"] = encode_value([value, "text"])
        del entries["b"]
    passed = 0
    for _ in range(4000):
        data = bytearray(random.choice(updates))
        for _ in range(random.randint(1, 3)):
            data[random.randrange(len(data))] = random.randrange(256)
        if random.random() < 0.2:
            data = data[: random.randrange(len(data) + 1)]
        try:
            facts = read_update(bytes(data))
        except DocumentError:
            continue
        if facts.client is not None and facts.client != 5:
            continue
        pycrdt.Doc().apply_update(bytes(data))
        passed += 1
    assert passed > 100


def update_of(write) -> bytes:
    doc = pycrdt.Doc(client_id=5)
    updates: list[bytes] = []
    doc.observe(lambda event: updates.append(event.update))
    with doc.transaction():
        write(doc)
    return updates[-1]


@pytest.mark.parametrize(
    "write",
    [
        lambda doc: doc.get("text:t", type=pycrdt.Text).insert(0, "a", {"b": True}),
        lambda doc: doc.get("array:l", type=pycrdt.Array).append(1),
        lambda doc: doc.get("map:m", type=pycrdt.Map).update({"k": pycrdt.Map({"x": ONE})}),
        lambda doc: doc.get("map:m", type=pycrdt.Map).update({"k": 1}),
        lambda doc: doc.get("map:m", type=pycrdt.Map).update({"k": b"\xc1"}),
        lambda doc: doc.get("map:m", type=pycrdt.Map).update({"k" * (MAX_NAME + 1): ONE}),
        lambda doc: doc.get("map:" + "m" * (MAX_NAME + 8), type=pycrdt.Map).update({"k": ONE}),
    ],
)
def test_what_lattica_does_not_write_is_refused(write):
    with pytest.raises(DocumentError):
        read_update(update_of(write))


def test_entries_of_two_clients_are_refused():
    first, one, _ = make_doc(1)
    second, two, _ = make_doc(2)
    one["a"], two["b"] = ONE, ONE
    second.apply_update(first.get_update())
    with pytest.raises(DocumentError, match="2 clients"):
        read_update(second.get_update())


def test_a_count_that_promises_too_much_is_refused_at_once():
    with pytest.raises(DocumentError, match="at most"):
        read_update(b"\x01" + b"\xff\xff\xff\x7f" + b"\x05\x00")
