"""Keys: their text form, their file, and what is refused."""

from __future__ import annotations

import os
import pickle
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import IdentityError, KeyFileError
from lattica.identity import wire
from lattica.identity.keys import Identity, PeerId


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_survives_its_text_and_wire_forms(raw: bytes) -> None:
    peer = PeerId(raw)
    assert PeerId.parse(str(peer)) == peer
    assert PeerId.parse(f"  {str(peer).upper()}\n") == peer
    assert wire.decode(wire.encode(peer), PeerId) == peer
    assert pickle.loads(pickle.dumps(peer)) == peer
    assert len({peer, PeerId(raw)}) == 1
    assert str(peer).startswith(peer.short)


@pytest.mark.parametrize("text", ["", "abc", "é" * 52, "a" * 51, "a" * 53, "1" * 52, "a" * 1000])
def test_what_is_not_a_peer_id_is_told(text: str) -> None:
    with pytest.raises(IdentityError, match="is not a PeerId"):
        PeerId.parse(text)


def test_one_peer_has_one_text_form() -> None:
    # The last of 52 base32 characters has four bits to spare.
    text = str(PeerId(bytes(32)))
    with pytest.raises(IdentityError):
        PeerId.parse(text[:-1] + "b")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_peer_id_has_32_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        PeerId(bytes(size))


def test_peer_ids_have_an_order() -> None:
    assert PeerId(bytes(32)) < PeerId(b"\1" + bytes(31))


@given(st.binary(max_size=200), st.data())
def test_a_signature_holds_for_its_message_and_key_only(
    message: bytes, data: st.DataObject
) -> None:
    identity, other = Identity(b"1" * 32), Identity(b"2" * 32)
    signature = identity.sign_bytes(message)
    assert identity.peer_id.verify(signature, message)
    assert not other.peer_id.verify(signature, message)
    assert not identity.peer_id.verify(signature, message + b"x")
    assert not identity.peer_id.verify(data.draw(st.binary(max_size=70)), message)


def test_a_key_file_is_private_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "identity.key"
    identity = Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert Identity.load_or_create(path).peer_id == identity.peer_id
    assert Identity.load(path).seed == identity.seed
    assert list(path.parent.iterdir()) == [path]


def test_a_private_umask_is_not_needed(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Identity.generate().save(tmp_path / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o601, 0o700 | 0o010])
def test_a_key_that_others_can_read_is_refused_with_the_cure(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    Identity.generate().save(path)
    path.chmod(mode)
    for load in (Identity.load, Identity.load_or_create):
        with pytest.raises(KeyFileError, match=f"run: chmod 600 {path}"):
            load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"ssh-ed25519 AAAA",
        b"lattica-ed25519:",
        b"lattica-ed25519:!!!!",
        b"lattica-ed25519:AAAA",
    ],
)
def test_a_malformed_key_file_is_told_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError):
        Identity.load_or_create(path)
    assert path.read_bytes() == content


def test_a_missing_or_unreachable_key_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot read"):
        Identity.load(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(KeyFileError):
        Identity.load_or_create(tmp_path / "file" / "key")
    with pytest.raises(KeyFileError):
        Identity.load_or_create(tmp_path)  # a directory


def test_a_key_that_exists_is_never_replaced_by_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "key"
    first = Identity.generate()
    first.save(path)
    with pytest.raises(KeyFileError, match="exists"):
        Identity.generate().save(path)
    assert Identity.load(path).peer_id == first.peer_id
    assert list(tmp_path.iterdir()) == [path]


def test_a_private_key_is_neither_shown_nor_pickled() -> None:
    identity = Identity(b"s" * 32)
    assert "ssss" not in repr(identity)
    assert identity.peer_id.short in repr(identity)
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(identity)


def test_a_seed_has_32_bytes() -> None:
    with pytest.raises(KeyFileError):
        Identity(b"short")


@pytest.mark.parametrize(
    "raw", [b"", b"\xc4\x05short", b"\xa3abc", b"\xc1", b"\xc4\x20" + bytes(33)]
)
def test_wire_decoding_is_strict(raw: bytes) -> None:
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        wire.decode(raw, PeerId)
