"""The signed envelope: who, for what, and nothing else."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import SignatureError
from lattica.identity import wire
from lattica.identity.keys import Identity
from lattica.identity.signed import Signed

ALICE, BOB = Identity(b"a" * 32), Identity(b"b" * 32)


class Note(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    text: str
    number: int = 0


def test_what_was_sealed_is_opened() -> None:
    signed = Signed.seal(ALICE, "note", Note("hello", 7))
    again = wire.decode(wire.encode(signed), Signed)
    assert again.open("note", Note) == Note("hello", 7)
    assert again.author == ALICE.peer_id


def test_a_signature_for_one_purpose_does_not_serve_another() -> None:
    signed = Signed.seal(ALICE, "note", Note("hello"))
    with pytest.raises(SignatureError, match="signed for 'note', not for 'grant'"):
        signed.open("grant", Note)
    renamed = msgspec.structs.replace(signed, domain="grant")
    with pytest.raises(SignatureError, match="does not verify"):
        renamed.open("grant", Note)


def test_the_border_between_domain_and_payload_is_signed() -> None:
    signed = Signed.seal(ALICE, "ab", "c")
    shifted = Signed(ALICE.peer_id, "a", b"b" + signed.payload, signed.signature)
    with pytest.raises(SignatureError):
        shifted.open("a", str)


def test_another_author_cannot_be_claimed() -> None:
    signed = Signed.seal(ALICE, "note", Note("hello"))
    with pytest.raises(SignatureError, match="does not verify"):
        msgspec.structs.replace(signed, author=BOB.peer_id).open("note", Note)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_changed_byte_verifies(index: int, change: int) -> None:
    raw = bytearray(wire.encode(Signed.seal(ALICE, "note", Note("hello", 7))))
    raw[index % len(raw)] ^= change
    with pytest.raises((SignatureError, msgspec.MsgspecError, ValueError)):
        wire.decode(bytes(raw), Signed).open("note", Note)


@pytest.mark.parametrize("value", [[], ["text", "not a number"], ["text", 1, "more"], 5, b"raw"])
def test_a_payload_of_another_shape_is_refused(value: object) -> None:
    with pytest.raises(SignatureError, match="not a Note"):
        Signed.seal(ALICE, "note", value).open("note", Note)


def test_a_signature_of_any_length_is_just_wrong() -> None:
    signed = Signed.seal(ALICE, "note", Note("hello"))
    for signature in (b"", signed.signature[:-1], signed.signature + b"\0"):
        with pytest.raises(SignatureError):
            msgspec.structs.replace(signed, signature=signature).open("note", Note)
