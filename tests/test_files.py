"""Replaced as a whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lattica.files import replace


def test_a_file_and_its_folder_are_made_for_this_user_alone(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    replace(target, b"one")
    assert target.read_bytes() == b"one"
    assert target.stat().st_mode & 0o777 == 0o600
    assert target.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("durable", [True, False])
def test_what_cannot_be_replaced_stays_and_leaves_nothing_behind(
    tmp_path: Path, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    replace(target, b"old", durable=durable)

    def full(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        replace(target, b"new", durable=durable)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_bytes_are_on_the_disk_before_they_have_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.replace

    def note_sync(fd: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "bytes")
        fsync(fd)

    def note_rename(here: str, there: Path) -> None:
        done.append("name")
        rename(here, there)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    replace(tmp_path / "file", b"new")
    assert done == ["bytes", "name", "folder"]
    done.clear()
    replace(tmp_path / "file", b"newer", durable=False)
    assert done == ["name"]
