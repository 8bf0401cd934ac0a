"""What a peer keeps for others: newest per author, within limits, until it expires."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattica.config import DhtConfig
from lattica.dht.keys import dht_key
from lattica.dht.storage import Storage
from lattica.errors import RecordError
from lattica.identity.signed import Signed
from tests.dht.support import KEY, NOW, envelope, identity, storage


def sequences(kept: Storage, now: float = NOW) -> list[int]:
    return [entry.record.sequence for entry in kept.get(KEY, "note", now=now)]


def refused(kept: Storage, *args: int, now: float = NOW, **record: object) -> str:
    with pytest.raises(RecordError) as caught:
        kept.store(envelope(*args, **record), now=now)  # type: ignore[arg-type]
    return str(caught.value)


def test_many_authors_share_a_key() -> None:
    kept = storage()
    for author in range(64):
        kept.store(envelope(author), now=NOW)
    authors = {entry.envelope.author for entry in kept.get(KEY, "note", now=NOW)}
    assert authors == {identity(author).peer_id for author in range(64)}


def test_one_author_has_its_newest_record_only() -> None:
    kept = storage()
    for sequence in (1, 2, 5):
        kept.store(envelope(sequence=sequence), now=NOW)
    assert sequences(kept) == [5]
    assert len(kept) == 1


def test_a_replay_of_an_older_record_is_refused_and_counted() -> None:
    kept = storage()
    kept.store(envelope(sequence=2), now=NOW)
    assert "newer" in refused(kept, sequence=1)
    assert sequences(kept) == [2]
    assert kept.counters["refused:stale"] == 1


def test_the_same_record_twice_is_acknowledged_twice() -> None:
    kept = storage()
    kept.store(envelope(), now=NOW)
    kept.store(envelope(), now=NOW)
    assert len(kept) == 1
    assert not kept.counters


def test_two_records_with_one_sequence_do_not_replace_each_other() -> None:
    kept = storage()
    kept.store(envelope(value="first"), now=NOW)
    assert "one sequence" in refused(kept, value="second")


def test_a_removed_record_does_not_come_back() -> None:
    kept = storage()
    kept.store(envelope(sequence=1), now=NOW)
    kept.store(envelope(sequence=2, removed=True), now=NOW)
    refused(kept, sequence=1)
    assert kept.get(KEY, "note", now=NOW)[0].record.removed


def test_kinds_under_one_key_are_apart() -> None:
    kept = storage()
    kept.store(envelope(value="text"), now=NOW)
    kept.store(envelope(kind="blob", value=b"bytes"), now=NOW)
    assert len(kept) == 2
    assert len(kept.get(KEY, "blob", now=NOW)) == 1


def test_an_expired_record_is_not_returned_even_before_it_is_forgotten() -> None:
    kept = storage()
    kept.store(envelope(expires=NOW + 10), now=NOW)
    assert sequences(kept, NOW + 9.9) == [1]
    assert sequences(kept, NOW + 10) == []
    assert kept.expire(now=NOW + 10) == 1
    assert len(kept) == kept.nbytes == 0


def test_an_expired_record_makes_way_for_a_lower_sequence() -> None:
    kept = storage()
    kept.store(envelope(sequence=9, expires=NOW + 1), now=NOW)
    kept.store(envelope(sequence=1, expires=NOW + 60), now=NOW + 2)
    assert sequences(kept, NOW + 2) == [1]


def test_records_per_author_are_limited_but_its_own_can_be_renewed() -> None:
    kept = storage(DhtConfig(max_records_per_author=2))
    keys = [dht_key("test", str(number)) for number in range(3)]
    for key in keys[:2]:
        kept.store(envelope(key=key), now=NOW)
    assert "too many" in refused(kept, key=keys[2])
    kept.store(envelope(key=keys[0], sequence=2), now=NOW)
    kept.store(envelope(1, key=keys[2]), now=NOW)
    assert kept.counters == {"refused:author_full": 1}


def test_records_per_key_are_limited() -> None:
    kept = storage(DhtConfig(max_records_per_key=2))
    kept.store(envelope(0), now=NOW)
    kept.store(envelope(1), now=NOW)
    assert "under this key" in refused(kept, 2)
    kept.store(envelope(1, sequence=2), now=NOW)


def test_records_and_bytes_are_limited_in_total() -> None:
    by_count = storage(DhtConfig(max_records=1))
    by_count.store(envelope(0), now=NOW)
    assert "no more records" in refused(by_count, 1)
    by_bytes = storage(DhtConfig(max_bytes=1500))
    by_bytes.store(envelope(0, value="x" * 1000), now=NOW)
    assert "bytes" in refused(by_bytes, 1, value="x" * 1000)
    by_bytes.store(envelope(0, value="y" * 1000, sequence=2), now=NOW)


def test_an_author_that_stores_too_fast_is_slowed_down() -> None:
    kept = storage(DhtConfig(stores_per_second=2.0, store_burst=3))
    for sequence in range(3):
        kept.store(envelope(sequence=sequence), now=NOW)
    assert "too fast" in refused(kept, sequence=3)
    kept.store(envelope(1), now=NOW)
    kept.store(envelope(sequence=4), now=NOW + 0.5)
    assert kept.counters["refused:rate"] == 1


def test_forgeries_cost_their_author_its_rate() -> None:
    kept = storage(DhtConfig(stores_per_second=0.001, store_burst=2))
    for _ in range(2):
        refused(kept, domain="other")
    assert "too fast" in refused(kept, domain="other")
    assert kept.counters == Counter({"refused:invalid": 2, "refused:rate": 1})


def test_own_records_know_no_limits() -> None:
    kept = storage(DhtConfig(max_records_per_author=1, store_burst=1, stores_per_second=0.0))
    for number in range(5):
        kept.store(envelope(key=dht_key("test", str(number))), now=NOW, own=True)
    assert len(kept) == 5


def test_memory_of_idle_authors_is_given_back() -> None:
    kept = storage()
    for author in range(20):
        kept.store(envelope(author, expires=NOW + 1), now=NOW)
    kept.expire(now=NOW + 100)
    assert kept._authors == {}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 1),
            st.integers(0, 4),
            st.integers(1, 9),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_counts_stay_true_and_the_newest_wins_whatever_the_order(
    steps: list[tuple[int, int, int, int, bool]],
) -> None:
    kept = storage()
    expected: dict[tuple[int, int], tuple[int, float, Signed]] = {}
    now = NOW
    for author, place, sequence, life, removed in steps:
        now += 1
        slot = (author, place)
        if slot in expected and expected[slot][1] <= now:
            del expected[slot]
        key = dht_key("test", str(place))
        record = envelope(author, key=key, sequence=sequence, expires=now + life, removed=removed)
        try:
            kept.store(record, now=now)
        except RecordError:
            assert expected[slot][0] >= sequence
        else:
            if slot in expected and expected[slot][2] != record:
                assert expected[slot][0] < sequence
            expected[slot] = (sequence, now + life, record)
    kept.expire(now=now)
    alive = {slot: entry for slot, entry in expected.items() if entry[1] > now}
    assert len(kept) == len(alive)
    for (author, place), (sequence, _, _) in alive.items():
        entries = kept.get(dht_key("test", str(place)), "note", now=now)
        mine = [e for e in entries if e.envelope.author == identity(author).peer_id]
        assert [e.record.sequence for e in mine] == [sequence]
    assert kept.nbytes == sum(
        len(e.envelope.payload)
        for place in (0, 1)
        for e in kept.get(dht_key("test", str(place)), "note", now=now)
    )
