"""Many answers made one, and answers that lie."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from lattica.config import DhtConfig
from lattica.dht.keys import dht_key
from lattica.dht.merge import Merge
from lattica.dht.records import Verifier
from lattica.identity import wire
from tests.dht.support import KEY, NOW, envelope, identity, kinds


def merge(config: DhtConfig | None = None) -> tuple[Merge, Counter[str]]:
    config, counters = config or DhtConfig(), Counter[str]()
    return Merge(KEY, "note", Verifier(kinds(), config), config, counters), counters


def test_the_newest_record_of_each_author_stands() -> None:
    merged, counters = merge()
    for author, sequence in ((0, 1), (1, 7), (0, 3), (0, 2)):
        merged.add(envelope(author, sequence=sequence, value=f"{author}.{sequence}"), now=NOW)
    assert [found.value for found in merged.found(str)] == ["1.7", "0.3"]
    assert [found.author for found in merged.found(str)] == [
        identity(1).peer_id,
        identity(0).peer_id,
    ]
    assert not counters


def test_one_replica_that_knows_of_the_removal_is_enough() -> None:
    merged, _ = merge()
    merged.add(envelope(sequence=2, removed=True), now=NOW)
    merged.add(envelope(sequence=1), now=NOW)
    assert merged.found(str) == []


def test_a_replica_that_lies_is_counted_and_does_no_harm() -> None:
    merged, counters = merge()
    lies = (
        envelope(1, key=dht_key("test", "other")),
        envelope(2, kind="blob", value=b"x"),
        envelope(3, expires=NOW - 1),
        envelope(4, domain="else"),
    )
    merged.add_encoded(wire.encode((*lies, envelope(0))), now=NOW)
    assert [found.author for found in merged.found(str)] == [identity(0).peer_id]
    assert counters == {"dropped:wrong_key": 2, "dropped:invalid_record": 2}


def test_a_value_of_another_type_than_asked_for_is_dropped() -> None:
    merged, counters = merge()
    merged.add(envelope(), now=NOW)
    assert merged.found(int) == []
    assert counters == {"dropped:mistyped": 1}


def test_answers_are_bounded_in_bytes_and_number() -> None:
    merged, counters = merge(DhtConfig(max_reply=100))
    merged.add_encoded(bytes(101), now=NOW)
    assert counters == {"dropped:oversized_reply": 1}
    merged, counters = merge(DhtConfig(max_records_per_key=2))
    merged.add_encoded(wire.encode(tuple(envelope(n) for n in range(5))), now=NOW)
    assert len(merged.found(str)) == 2
    assert counters == {"dropped:too_many": 1}


def test_an_empty_answer_is_no_fault() -> None:
    merged, counters = merge()
    merged.add_encoded(b"", now=NOW)
    assert merged.found(str) == []
    assert not counters


@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=1, max_size=300))
def test_garbage_is_dropped_and_counted(data: bytes) -> None:
    merged, counters = merge()
    merged.add_encoded(data, now=NOW)
    assert merged.found(str) == []
    assert sum(counters.values()) <= 1 or counters["dropped:invalid_record"]


@settings(max_examples=30, deadline=None)
@given(st.permutations([(author, sequence) for author in range(3) for sequence in range(3)]))
def test_the_order_of_answers_does_not_matter(order: list[tuple[int, int]]) -> None:
    merged, _ = merge()
    for author, sequence in order:
        merged.add(envelope(author, sequence=sequence, value=str(sequence)), now=NOW)
    found = merged.found(str)
    assert [record.value for record in found] == ["2", "2", "2"]
    assert len({record.author for record in found}) == 3
