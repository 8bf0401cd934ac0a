"""What is believed of a record, and what is not."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattica.config import DhtConfig
from lattica.dht.keys import node_id
from lattica.dht.messages import PeerAddresses
from lattica.dht.records import VERIFIED_KEPT, Kinds, Verifier
from lattica.errors import RecordError
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed
from tests.dht.support import KEY, NOW, envelope, identity, kinds


def verifier(config: DhtConfig | None = None) -> Verifier:
    return Verifier(kinds(), config or DhtConfig())


def test_a_good_record_opens() -> None:
    record = verifier().open(envelope(value="hello"), now=NOW)
    assert (record.key, record.kind, record.sequence) == (KEY, "note", 1)


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (envelope(domain="update"), "forged"),
        (msgspec.structs.replace(envelope(0), author=identity(1).peer_id), "forged"),
        (msgspec.structs.replace(envelope(), signature=bytes(64)), "forged"),
        (msgspec.structs.replace(envelope(), signature=b""), "forged"),
        (Signed.seal(identity(0), "dht-record", ["not", "a", "record"]), "forged"),
        (envelope(expires=NOW), "expired"),
        (envelope(expires=NOW + 7200), "clock"),
        (envelope(expires=math.inf), "out of range"),
        (envelope(expires=math.nan), "out of range"),
        (envelope(sequence=-1), "out of range"),
        (envelope(sequence=2**63), "out of range"),
        (envelope(key=b"short"), "20 bytes"),
        (envelope(kind="unheard-of"), "unknown kind"),
        (envelope(value=7), "does not fit"),
        (envelope(kind="blob", value="text"), "does not fit"),
        (envelope(kind="blob", value=bytes(20_000)), "larger than"),
    ],
)
def test_what_does_not_hold_is_refused_with_its_cause(bad: Signed, cause: str) -> None:
    with pytest.raises(RecordError, match=cause):
        verifier().open(bad, now=NOW)


def test_a_record_that_was_believed_is_not_believed_once_expired() -> None:
    known = verifier()
    known.open(envelope(expires=NOW + 1), now=NOW)
    with pytest.raises(RecordError, match="expired"):
        known.open(envelope(expires=NOW + 1), now=NOW + 1)


def test_a_changed_payload_is_not_taken_for_the_verified_one() -> None:
    known, good = verifier(), envelope()
    known.open(good, now=NOW)
    with pytest.raises(RecordError, match="forged"):
        known.open(msgspec.structs.replace(good, payload=good.payload + b"\x00"), now=NOW)


def test_a_tombstone_holds_nothing() -> None:
    assert verifier().open(envelope(removed=True), now=NOW).removed


def test_memory_for_verified_records_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lattica.dht.records.VERIFIED_KEPT", 4)
    known = verifier()
    for sequence in range(10):
        known.open(envelope(sequence=sequence), now=NOW)
    assert len(known._verified) == 4 < VERIFIED_KEPT


def test_a_peer_publishes_addresses_at_its_own_place_only() -> None:
    where = PeerAddresses(("10.0.0.1:1",))
    mine = node_id(identity(0).peer_id)
    assert verifier().open(envelope(0, key=mine, kind="peer", value=where), now=NOW)
    with pytest.raises(RecordError, match="may not publish"):
        verifier().open(envelope(1, key=mine, kind="peer", value=where), now=NOW)


def test_a_kind_has_one_type_and_a_plain_name() -> None:
    known = Kinds()
    known.register("note", str)
    known.register("note", str)
    with pytest.raises(RecordError, match="note"):
        known.register("note", bytes)
    for name in ("", "UPPER", "with space", "x" * 40, "a\n"):
        with pytest.raises(RecordError, match="no name"):
            known.register(name, str)


def test_a_kind_may_ask_for_more_than_a_type() -> None:
    known = Kinds()
    known.register("note", str, check=lambda author, _, value: value == author.short)
    checker = Verifier(known, DhtConfig())
    assert checker.open(envelope(0, value=identity(0).peer_id.short), now=NOW)
    with pytest.raises(RecordError, match="may not"):
        checker.open(envelope(0, value="somebody"), now=NOW)


@settings(max_examples=200, deadline=None)
@given(
    author=st.binary(min_size=32, max_size=32),
    domain=st.sampled_from(["dht-record", "x"]),
    payload=st.binary(max_size=200),
    signature=st.binary(max_size=80),
)
def test_garbage_is_a_record_error_and_nothing_else(
    author: bytes, domain: str, payload: bytes, signature: bytes
) -> None:
    with pytest.raises(RecordError):
        verifier().open(Signed(PeerId(author), domain, payload, signature), now=NOW)


@settings(max_examples=100, deadline=None)
@given(payload=st.binary(max_size=200))
def test_a_signed_payload_of_garbage_is_a_record_error(payload: bytes) -> None:
    author = identity(0)
    tag = b"dht-record"
    message = b"lattica-signed-v1\x00" + len(tag).to_bytes(2, "big") + tag + payload
    garbage = Signed(author.peer_id, "dht-record", payload, author.sign_bytes(message))
    with pytest.raises(RecordError):
        verifier().open(garbage, now=NOW)
