"""Replicas of one document, sans I/O: they converge, and nobody can make them do otherwise."""

from __future__ import annotations

import contextlib
import random

import msgspec
import pycrdt
import pytest

from lattica.config import StoreConfig
from lattica.errors import DocumentError, GrantError
from lattica.identity import grants
from lattica.identity.signed import Signed, _message
from lattica.store.chains.messages import DOMAIN, envelope_hash
from lattica.store.chains.refusals import RefusedError
from lattica.store.chains.replica import Replica
from lattica.store.crdt.state import client_id
from lattica.store.crdt.values import encode_value
from tests.store.mesh import (
    HOUR,
    NOW,
    authority,
    identity,
    membership,
    read,
    receive,
    replica,
    seal,
    sync,
    write,
)

ONE, TWO = encode_value(1), encode_value(2)
MANY = 10**9


def body_by(number: int, key: str = "k", value: bytes = ONE) -> bytes:
    """A pycrdt update in a peer's client id, from an empty document."""
    doc = pycrdt.Doc(client_id=client_id(identity(number).peer_id))
    updates: list[bytes] = []
    doc.observe(lambda event: updates.append(event.update))
    doc.get("map:m", type=pycrdt.Map)[key] = value
    return updates[0]


def refusal(target: Replica, envelope: Signed) -> str:
    """Why an envelope is refused; and that it left nothing behind."""
    before, heads = read(target), target.heads()
    with pytest.raises(RefusedError) as caught:
        receive(target, envelope)
    assert (read(target), target.heads()) == (before, heads)
    assert target.counters[f"refused:{caught.value.reason}"] >= 1
    return caught.value.reason


# ------------------------------------------------------------------------------ convergence


def test_an_author_never_met_is_verified_by_what_it_showed():
    one, two, three = replica(1), replica(2), replica(3)
    write(one, "k", ONE)
    sync(one, two)
    sync(two, three)
    assert read(three) == {"k": ONE}


def test_updates_that_come_in_reverse_wait_for_each_other():
    one, two = replica(1), replica(2)
    envelopes = [write(one, "k", encode_value(value)) for value in range(5)]
    receive(two, envelopes[0])
    for envelope in reversed(envelopes[2:]):
        assert receive(two, envelope) is None
    assert len(receive(two, envelopes[1])) == 4
    assert read(two) == {"k": encode_value(4)}


def test_an_update_waits_for_what_it_overwrites():
    one, two, three = replica(1), replica(2), replica(3)
    first = write(one, "k", ONE)
    sync(one, two)
    second = write(two, "k", TWO)
    assert receive(three, second) is None
    assert read(three) == {}
    assert len(receive(three, first)) == 2
    assert read(three) == read(two) == {"k": TWO}


def test_waiting_is_bounded_and_made_good_by_the_next_exchange():
    one, two = replica(1), replica(2, config=StoreConfig(max_waiting=3))
    envelopes = [write(one, "k", encode_value(value)) for value in range(10)]
    receive(two, envelopes[0])
    for envelope in envelopes[2:]:
        receive(two, envelope)
    assert two.counters["dropped:waiting_full"] == 5
    sync(one, two)
    assert read(two) == read(one)


def test_a_gap_of_an_unknown_author_costs_no_memory():
    one, two = replica(1), replica(2)
    write(one, "k", ONE)
    assert receive(two, write(one, "k", TWO)) is None
    assert two.counters["dropped:gap"] == 1
    assert not two.chains


def test_a_batch_is_cut_at_the_limit_and_goes_on_from_there():
    one, two = replica(1), replica(2)
    for value in range(20):
        write(one, f"k{value}", encode_value(b"x" * 1000))
    rounds = 0
    while True:
        batch = one.missing(two.heads(), limit=4000)
        for envelope in batch.envelopes:
            receive(two, envelope)
        assert {head.author: head for head in two.heads()} == {h.author: h for h in batch.heads}
        rounds += 1
        if batch.is_complete:
            break
    assert rounds >= 4
    assert read(two) == read(one)


def test_what_is_not_on_disk_yet_does_not_leave():
    one = replica(1)
    write(one, "k", ONE)
    write(one, "k", TWO)
    author = identity(1).peer_id
    assert one.missing((), limit=MANY, committed={}).envelopes == ()
    assert len(one.missing((), limit=MANY, committed={author: 1}).envelopes) == 1


# ------------------------------------------------------------------------------ own writes


def test_a_transaction_is_one_update():
    one = replica(1)
    with one.transaction(NOW) as links:
        one.state.map("m")["a"] = ONE
        one.state.map("n")["b"] = TWO
    assert len(links) == 1
    assert one.heads()[0].sequence == 1


def test_a_transaction_that_raises_changes_nothing():
    one, two = replica(1), replica(2)
    write(one, "k", ONE)
    with contextlib.suppress(ZeroDivisionError), one.transaction(NOW):
        one.state.map("m")["k"] = TWO
        raise ZeroDivisionError
    assert read(one) == {"k": ONE}
    write(one, "l", TWO)
    sync(one, two)
    assert read(two) == {"k": ONE, "l": TWO}


def test_a_transaction_that_is_too_large_changes_nothing():
    one = replica(1, config=StoreConfig(max_update=1000))
    with pytest.raises(DocumentError, match="blocks"):
        write(one, "k", encode_value(b"x" * 2000))
    assert read(one) == {}


def test_an_empty_transaction_writes_nothing():
    one = replica(1)
    with one.transaction(NOW) as links:
        pass
    assert links == []


def test_a_peer_without_the_grant_cannot_write():
    with pytest.raises(GrantError, match="write:roster"):
        write(replica(1, grants.CALL, "write:other"), "k", ONE)


def test_a_peer_whose_grant_has_run_out_cannot_write():
    with pytest.raises(GrantError, match="expired"):
        write(replica(1), "k", ONE, now=NOW + 2 * HOUR)


def test_updates_of_others_stay_out_of_a_transaction_in_progress():
    one, two = replica(1), replica(2)
    envelope = write(two, "x", TWO)
    with one.transaction(NOW) as links:
        one.state.map("m")["k"] = ONE
        assert receive(one, envelope) is None
    assert one.counters["dropped:writing"] == 1
    sync(one, two)
    assert read(one) == read(two) == {"k": ONE, "x": TWO}
    assert links[0].sequence == 1


# ------------------------------------------------------------------------------ refusals


def test_a_changed_signature_payload_or_author_is_forged():
    one, two = replica(1), replica(2)
    envelope = write(one, "k", ONE)
    for changes in (
        {"signature": bytes(64)},
        {"payload": envelope.payload[:-1] + b"\x00"},
        {"author": identity(3).peer_id},
        {"domain": "grant"},
        {"payload": b"\xc1"},
    ):
        assert refusal(two, msgspec.structs.replace(envelope, **changes)) == "forged"


def test_an_update_of_another_document_or_mesh_is_foreign():
    two = replica(2)
    assert refusal(two, write(replica(1, name="other"), "k", ONE)) == "foreign"
    shown = membership(identity(1))
    assert refusal(two, seal(1, body_by(1), document="other", shown=shown)) == "foreign"


@pytest.mark.parametrize(
    "shown",
    [
        None,
        membership(identity(1), grants.CALL),
        membership(identity(1), "write:other"),
        membership(identity(2)),
        membership(identity(1), by=identity(9)),
        membership(identity(1), expires=NOW - 1),
        grants.Membership(identity(9).peer_id, membership(identity(1)).chain),
        grants.Membership(authority.peer_id),
    ],
)
def test_an_author_without_the_grant_is_unauthorised(shown):
    two = replica(2)
    assert refusal(two, seal(1, body_by(1), shown=shown)) == "unauthorised"
    assert not two.chains, "whoever was never allowed anything is not remembered"


def test_a_grant_that_has_run_out_since_still_covers_what_was_written_before():
    one, two = replica(1), replica(2)
    first = write(one, "k", ONE)
    receive(two, first)
    late = seal(1, body_by(1), sequence=2, previous=envelope_hash(first), written=NOW + 2 * HOUR)
    assert refusal(two, late) == "unauthorised"
    assert read(two) == {"k": ONE}


def test_writing_dated_before_the_last_is_refused():
    one, two = replica(1), replica(2)
    first = write(one, "k", ONE, now=NOW + 10)
    receive(two, first)
    back = seal(1, body_by(1), sequence=2, previous=envelope_hash(first), written=NOW)
    assert refusal(two, back) == "unauthorised"


def test_a_renewed_grant_is_shown_once_and_holds_from_there():
    one, two = replica(1), replica(2)
    write(one, "k", ONE)
    one._membership = membership(identity(1), expires=NOW + 9 * HOUR)
    write(one, "k", TWO, now=NOW + 3 * HOUR)
    small = write(one, "k", ONE, now=NOW + 4 * HOUR)
    assert len(small.payload) < 300
    sync(one, two)
    assert read(two) == read(one) == {"k": ONE}


def test_writing_in_another_authors_client_id_is_refused():
    two = replica(2)
    forged = seal(1, body_by(3), shown=membership(identity(1)))
    assert refusal(two, forged) == "client"


@pytest.mark.parametrize("body", [b"", b"\x00", b"\xff" * 40, body_by(1)[:-3], body_by(1) + b"\0"])
def test_a_malformed_update_is_refused_and_its_author_goes_no_further(body):
    one, two = replica(1), replica(2)
    first = write(one, "k", ONE)
    receive(two, first)
    bad = seal(1, body, sequence=2, previous=envelope_hash(first))
    assert refusal(two, bad) == "malformed"
    assert refusal(two, bad) == "stuck"
    sync(replica(3), two)
    write(two, "mine", ONE)
    assert read(two) == {"k": ONE, "mine": ONE}


def test_a_replayed_body_under_a_new_number_is_refused():
    """The clock inside the update must follow the author's last one."""
    one, two = replica(1), replica(2)
    first = write(one, "k", ONE)
    receive(two, first)
    again = seal(1, body_by(1, value=ONE), sequence=2, previous=envelope_hash(first))
    assert refusal(two, again) == "malformed"


def test_a_replayed_envelope_is_no_news():
    one, two = replica(1), replica(2)
    envelope = write(one, "k", ONE)
    assert len(receive(two, envelope)) == 1
    assert receive(two, envelope) == []
    assert two.counters["known"] == 1


def test_a_peer_that_lost_its_copy_goes_on_where_others_know_it_was():
    one, two = replica(1), replica(2)
    write(one, "k", ONE)
    sync(one, two)
    reborn = replica(1)
    sync(two, reborn)
    write(reborn, "k", TWO)
    sync(reborn, two)
    assert read(two) == {"k": TWO}


def test_a_second_author_with_the_same_client_id_is_refused(monkeypatch):
    monkeypatch.setattr("lattica.store.chains.chain.client_id", lambda _: 5)
    doc = pycrdt.Doc(client_id=5)
    updates: list[bytes] = []
    doc.observe(lambda event: updates.append(event.update))
    doc.get("map:m", type=pycrdt.Map)["a"] = ONE
    doc.get("map:m", type=pycrdt.Map)["b"] = ONE
    two = replica(2)
    receive(two, seal(1, updates[0], shown=membership(identity(1))))
    assert refusal(two, seal(3, updates[1], shown=membership(identity(3)))) == "client"


def test_oversized_envelopes_and_full_logs_are_refused():
    small = StoreConfig(max_update=1000, max_author_log=2500)
    one, two = replica(1), replica(2, config=small)
    assert refusal(two, write(one, "k", encode_value(b"x" * 50_000))) == "oversized"
    one = replica(1)
    receive(two, write(one, "k", encode_value(b"x" * 900)))
    receive(two, write(one, "k", encode_value(b"x" * 600)))
    assert refusal(two, write(one, "k", encode_value(b"x" * 900))) == "full"


def test_garbage_never_escapes():
    rng = random.Random(5)
    one, two = replica(1), replica(2)
    envelope = write(one, "k", ONE)
    for _ in range(500):
        payload = bytearray(envelope.payload)
        payload[rng.randrange(len(payload))] = rng.randrange(256)
        signature = identity(1).sign_bytes(_message(DOMAIN, bytes(payload)))
        signed = Signed(identity(1).peer_id, DOMAIN, bytes(payload), signature)
        try:
            taken = receive(two, signed)
        except RefusedError:
            continue
        assert taken is None or taken, "a change of a value is the author's own business"
        two = replica(2)
    assert read(two) == {}
