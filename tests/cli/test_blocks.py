"""`lattica blocks` between real processes, and where no peer runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.daemons import Daemon, Daemons, lattica, running

SIZE = 3_000_000
NOWHERE = "b3-" + "a" * 52


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemons, Daemon, Daemon]]:
    with running(tmp_path_factory.mktemp("blocks")) as daemons:
        alpha = daemons.start("alpha", "up")
        yield daemons, alpha, daemons.start("beta", "join", alpha.up["ticket"])


Pair = tuple[Daemons, Daemon, Daemon]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "deep").mkdir(parents=True)
    (made / "weights.bin").write_bytes(os.urandom(SIZE))
    (made / "deep" / "config.json").write_text("{}")
    return made


def blocks(home: Path, *words: str) -> Any:
    """What an operation says as JSON."""
    answer = lattica("blocks", *words, "--json", home=home)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def test_what_one_machine_adds_another_gets(pair: Pair, folder: Path, tmp_path: Path) -> None:
    _, alpha, beta = pair
    added = lattica("blocks", "add", str(folder), home=alpha.home)
    manifest = added.stdout.strip()
    assert manifest.startswith("b3-")
    got = blocks(beta.home, "get", manifest, str(tmp_path / "there"))
    assert sum(got["provided"].values()) == SIZE + 2
    assert (tmp_path / "there" / "weights.bin").read_bytes() == (
        folder / "weights.bin"
    ).read_bytes()
    assert (tmp_path / "there" / "deep" / "config.json").read_text() == "{}"
    shown = lattica("blocks", "path", manifest, home=beta.home)
    assert _files(Path(shown.stdout.strip())) == _files(folder)
    again = lattica("blocks", "get", manifest, str(tmp_path / "twice"), home=beta.home)
    assert "2.9 MiB were here, 0 B came" in again.stdout
    (listed,) = [each for each in blocks(beta.home, "ls")["manifests"] if each["id"] == manifest]
    assert (listed["files"], listed["here"]) == (2, SIZE + 2)


def test_pinned_ones_outlive_a_collection(pair: Pair, folder: Path) -> None:
    _, alpha, _ = pair
    kept = blocks(alpha.home, "add", str(folder), "--pin")["manifests"][0]["id"]
    (folder / "weights.bin").write_bytes(os.urandom(SIZE))
    gone = blocks(alpha.home, "add", str(folder))["manifests"][0]["id"]
    swept = blocks(alpha.home, "gc", "--quota", "1M")
    assert gone in swept["gone"]
    assert [each["id"] for each in swept["manifests"]] == [kept]
    blocks(alpha.home, "unpin", kept)
    assert blocks(alpha.home, "gc", "--quota", "0")["gone"] == [kept]


def test_damage_is_found_told_and_mended(pair: Pair, folder: Path, tmp_path: Path) -> None:
    _, alpha, beta = pair
    blocks(beta.home, "gc", "--quota", "0")
    manifest = blocks(alpha.home, "add", str(folder))["manifests"][0]["id"]
    blocks(beta.home, "get", manifest, str(tmp_path / "there"))
    files = (beta.home / "store" / "blocks" / "files").iterdir()
    # Of equal ones the newest: what another test was given a path to is spared by gc.
    victim = max(files, key=lambda path: (path.stat().st_size, path.stat().st_mtime_ns))
    victim.chmod(0o644)
    with victim.open("r+b") as file:
        file.write(bytes(1_048_576))
    found = lattica("blocks", "verify", manifest, home=beta.home)
    assert found.returncode == 1
    assert "1 blocks were damaged" in found.stderr
    assert "lattica blocks get" in found.stderr
    got = blocks(beta.home, "get", manifest, str(tmp_path / "again"))
    assert sum(got["provided"].values()) == 1_048_576
    assert lattica("blocks", "verify", manifest, home=beta.home).returncode == 0


def test_an_id_that_nobody_has_is_an_error_that_says_so(pair: Pair, tmp_path: Path) -> None:
    _, alpha, _ = pair
    for words in (("get", NOWHERE, str(tmp_path)), ("pin", NOWHERE), ("verify", NOWHERE)):
        answer = lattica("blocks", *words, home=alpha.home)
        assert answer.returncode == 1
        assert NOWHERE in answer.stderr
    answer = lattica("blocks", "get", "b4-x", str(tmp_path), home=alpha.home)
    assert "no manifest id" in answer.stderr


def test_a_store_is_of_use_where_no_peer_runs(pair: Pair, folder: Path, tmp_path: Path) -> None:
    daemons, alpha, _ = pair
    home = tmp_path / "home"
    manifest = blocks(home, "add", str(folder), "--pin")["manifests"][0]["id"]
    assert blocks(home, "gc", "--quota", "0")["gone"] == []
    assert blocks(home, "verify")["blocks"] == 4
    shown = lattica("blocks", "path", manifest, home=home)
    assert _files(Path(shown.stdout.strip())) == _files(folder)
    answer = lattica("blocks", "get", manifest, str(tmp_path / "there"), home=home)
    assert answer.returncode == 1
    assert "lattica up" in answer.stderr
    # The next peer that runs there offers what was added.
    daemons.start("gamma", "join", alpha.up["ticket"], home=str(home))
    got = blocks(alpha.home, "get", manifest, str(tmp_path / "there"))
    assert sum(got["provided"].values()) >= SIZE


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("gc", "--quota", "much"), "no"),
        (("add",), "required"),
        ((), "choose from"),
    ],
)
def test_wrong_words_are_told(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    answer = lattica("blocks", *words, home=tmp_path)
    assert answer.returncode == 2
    assert says in answer.stderr


def _files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
