"""Contacts on disk between runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lattica.dht.contacts import MAX_CONTACTS, NAME, ContactFile
from lattica.identity.tickets import Contact
from tests.dht.support import peer_id


def contacts(count: int) -> list[Contact]:
    return [Contact(peer_id(number), (f"10.0.0.1:{number + 1}",)) for number in range(count)]


def test_what_was_saved_is_loaded_by_the_next_run(tmp_path: Path) -> None:
    ContactFile(tmp_path / "dht").save(contacts(3))
    assert ContactFile(tmp_path / "dht").load() == tuple(contacts(3))


def test_without_a_directory_nothing_is_kept() -> None:
    file = ContactFile(None)
    file.save(contacts(3))
    assert file.load() == ()


@pytest.mark.parametrize(
    "damage", [b"", b"garbage", b"\xdd\xff\xff\xff\xff", b"\x91\x92\xc4\x01a\x90"]
)
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / NAME).write_bytes(damage)
    assert ContactFile(tmp_path).load() == ()


def test_an_empty_table_does_not_erase_the_last_contacts(tmp_path: Path) -> None:
    file = ContactFile(tmp_path)
    file.save(contacts(2))
    file.save([])
    assert len(file.load()) == 2


def test_the_file_is_bounded_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    ContactFile(tmp_path).save(contacts(MAX_CONTACTS + 10))
    assert len(ContactFile(tmp_path).load()) == MAX_CONTACTS
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
