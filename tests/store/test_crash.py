"""kill -9 in the middle of it, then look: nothing acknowledged is lost, nothing bad is kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lattica.link.memory import MemoryLinks, MemoryNetwork
from lattica.rpc import Rpc
from lattica.store import Blocks, Documents
from tests.store.crash_child import CONFIG, SIZE, data
from tests.store.mesh import NOW, home, identity, membership

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]


@contextmanager
def child(what: str, base: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.store.crash_child", what, str(base)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


async def test_what_was_acknowledged_survives_a_kill_and_transactions_stay_whole(tmp_path):
    acknowledged = -1
    for stop_after in (3, 20, 50):
        with child("write", tmp_path) as process:
            assert process.stdout is not None
            for _ in range(stop_after):
                acknowledged = int(process.stdout.readline())
            process.kill()
            rest = process.stdout.read().split("\n")
        # The last line may be cut by the kill; those before it are whole.
        acknowledged = max([acknowledged, *[int(line) for line in rest[:-1]]])
        shown = membership(identity(1), expires=NOW * 10_000)
        links = MemoryLinks(MemoryNetwork(), identity(1), shown)
        async with (
            Rpc(links) as rpc,
            Documents(rpc, None, identity(1), shown, home(tmp_path, 1)) as documents,
        ):
            document = await documents.open("roster")
            entries = list(document.map("m").values())
            assert entries == list(range(len(entries)))
            assert len(entries) > acknowledged
            assert list(document.map("n").values()) == entries
            assert not any(key.startswith("refused") for key in document.counters)


async def test_a_killed_fetch_leaves_only_good_blocks_and_goes_on_from_them(tmp_path):
    with child("fetch", tmp_path) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        while int(process.stdout.readline()) < SIZE // 20:
            pass
        process.kill()
    assert len(list((home(tmp_path, 2) / "parts").iterdir())) == 1
    assert list((home(tmp_path, 2) / "files").iterdir()) == []
    assert not (tmp_path / "out").exists()

    network = MemoryNetwork()
    shown = [membership(identity(n), expires=NOW * 10_000) for n in (1, 2)]
    links = [MemoryLinks(network, identity(n), shown[n - 1]) for n in (1, 2)]
    async with (
        Rpc(links[0]) as first,
        Rpc(links[1]) as second,
        Blocks(home(tmp_path, 1), first, None, CONFIG) as one,
        Blocks(home(tmp_path, 2), second, None, CONFIG) as two,
    ):
        assert one.has(name)
        assert not two.has(name)
        assert list((home(tmp_path, 2) / "tmp").iterdir()) == []
        out = await two.fetch(name, tmp_path / "out", providers=[identity(1).peer_id])
        assert (out / "bytes").read_bytes() == data()
        report = two.report(name)
        assert report is not None
        assert SIZE // 20 - CONFIG.block <= report.held < SIZE
