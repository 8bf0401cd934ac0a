"""Disks that are full, torn or cut short: errors that say so, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from lattica.config import StoreConfig
from lattica.errors import StoreError
from lattica.link.memory import MemoryNetwork
from lattica.store import Documents
from tests.store.mesh import home, until_equal
from tests.store.test_documents import SLOW, id_of, link, mesh, peer

pytestmark = pytest.mark.anyio

QUICK_RETRY = StoreConfig(sync_every=0.05, snapshot_every=8)


def file_of(base: Path, number: int) -> Path:
    return home(base, number) / "documents.sqlite"


async def write_until_full(documents: Documents) -> int:
    """Write until the disk takes no more; how many writes were acknowledged."""
    document = await documents.open("roster")
    acknowledged = 0
    while True:
        document.map("m")[f"{acknowledged:05}"] = "x" * 500
        try:
            await document.flush()
        except StoreError as error:
            return acknowledged if "full" in str(error) else -1
        acknowledged += 1


async def test_a_full_disk_is_told_loses_nothing_and_is_made_good(tmp_path):
    async with mesh(tmp_path, 2, config=QUICK_RETRY) as (_, (one, two)):
        await link(one, 2)
        there = await two.open("roster")
        connection = one._database._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 30}")
        acknowledged = await write_until_full(one)
        assert acknowledged > 5
        here = await one.open("roster")
        assert len(here.map("m")) == acknowledged + 1, "it reads on from memory"
        connection.execute("PRAGMA max_page_count = 100000")
        here.map("m")["more"] = 1
        await here.flush()
        await until_equal(here, there)
        assert len(there.map("m")) == acknowledged + 2
    async with mesh(tmp_path, 1, config=QUICK_RETRY) as (_, (one,)):
        assert len((await one.open("roster")).map("m")) == acknowledged + 2


async def test_what_was_acknowledged_before_a_full_disk_is_there_after_a_crash(tmp_path):
    async with mesh(tmp_path, 1, config=SLOW) as (_, (one,)):
        connection = one._database._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 30}")
        acknowledged = await write_until_full(one)
    async with mesh(tmp_path, 1, config=SLOW) as (_, (one,)):
        document = await one.open("roster")
        assert len(document.map("m")) == acknowledged
        document.map("m")["after"] = 1
        await document.flush()


@pytest.mark.parametrize("what", ["cut", "page", "noise"])
async def test_a_torn_file_is_told_and_peers_give_all_back(tmp_path, what):
    network = MemoryNetwork()
    async with peer(network, 2, tmp_path) as two:
        there = await two.open("roster")
        async with peer(network, 1, tmp_path) as one:
            await link(one, 2)
            document = await one.open("roster")
            for number in range(60):
                document.map("m")[f"k{number}"] = "x" * 300
            await document.flush()
            await until_equal(document, there)
        file = file_of(tmp_path, 1)
        data = bytearray(file.read_bytes())
        if what == "cut":
            data = data[: len(data) // 2]
        elif what == "page":
            start = len(data) // 2 // 4096 * 4096
            data[start : start + 4096] = bytes(4096)
        else:
            for at in range(4096, len(data), 97):
                data[at] ^= 0x55
        file.write_bytes(data)
        assert "move it away" in await problem(network, tmp_path)
        os.rename(file, file.with_suffix(".torn"))
        async with peer(network, 1, tmp_path) as one:
            await link(one, 2)
            document = await one.open("roster")
            assert len(document.map("m")) == 60
            document.map("m")["more"] = 1
            await until_equal(document, there)
            assert there.heads() == {id_of(1): 61}
            assert not [key for key in two.counters if key.startswith("refused")]


async def test_a_log_cut_short_by_the_disk_is_made_good_by_peers_before_the_next_write(tmp_path):
    network = MemoryNetwork()
    async with peer(network, 2, tmp_path) as two:
        there = await two.open("roster")
        lost = tmp_path / "copy"
        async with peer(network, 1, tmp_path) as one:
            await link(one, 2)
            document = await one.open("roster")
            document.map("m")["early"] = 1
            await document.flush()
            copy_of(file_of(tmp_path, 1), lost)
            document.map("m")["late"] = 1
            await document.flush()
            await until_equal(document, there)
        for leftover in home(tmp_path, 1).glob("documents.sqlite*"):
            leftover.unlink()
        os.rename(lost, file_of(tmp_path, 1))
        async with peer(network, 1, tmp_path) as one:
            await link(one, 2)
            document = await one.open("roster")
            assert document.map("m") == {"early": 1, "late": 1}
            document.map("m")["next"] = 1
            await until_equal(document, there)
            assert not [key for key in two.counters if key.startswith("refused")]


async def problem(network: MemoryNetwork, base: Path) -> str:
    """Why the first peer cannot open its document."""
    try:
        async with peer(network, 1, base) as one:
            try:
                await one.open("roster")
            except StoreError as error:
                return str(error)
    except StoreError as error:
        return str(error)
    return ""


def copy_of(source: Path, target: Path) -> None:
    """The database as of its last commit, in one file."""
    with sqlite3.connect(source) as connection, sqlite3.connect(target) as into:
        connection.backup(into)
    into.close()
    connection.close()


@pytest.mark.parametrize(("fsync", "level"), [(True, 2), (False, 1)])
async def test_whether_writes_wait_for_the_disk_is_configured(tmp_path, fsync, level):
    async with mesh(tmp_path, 1, config=StoreConfig(fsync=fsync)) as (_, (one,)):
        assert one._database._connection.execute("PRAGMA synchronous").fetchone() == (level,)


async def test_a_row_whose_signature_was_spoiled_is_fetched_again_and_replaced(tmp_path):
    """It was vouched for by an update that a crash kept from the disk."""
    network = MemoryNetwork()
    async with peer(network, 2, tmp_path) as two:
        there = await two.open("roster")
        for number in range(3):
            there.map("m")[f"k{number}"] = number
        await there.flush()
        async with peer(network, 1, tmp_path) as one:
            await link(one, 2)
            await until_equal(await one.open("roster"), there)
            await one._journal.flush()
        spoil_last(file_of(tmp_path, 1))
        for _ in range(2):
            async with peer(network, 1, tmp_path) as one:
                await link(one, 2)
                document = await one.open("roster")
                await until_equal(document, there)
                await document.flush()
                assert document.heads() == {id_of(2): 3}
        async with peer(network, 1, tmp_path) as one:
            assert (await one.open("roster")).heads() == {id_of(2): 3}, "without the other peer"


def spoil_last(file: Path) -> None:
    """Break the signature of the last envelope."""
    with sqlite3.connect(file) as connection:
        row, data = connection.execute(
            "SELECT id, envelope FROM envelopes ORDER BY id DESC LIMIT 1"
        ).fetchone()
        connection.execute(
            "UPDATE envelopes SET envelope = ? WHERE id = ?", (data[:-64] + bytes(64), row)
        )
    connection.close()
