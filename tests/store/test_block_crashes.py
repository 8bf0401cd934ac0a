"""Processes that are killed at any point, share a store, or fill the disk: no bad byte is seen.

`LATTICA_BLOCK_KILLS=200` kills more often.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from bench.blocks import resume
from bench.mesh import Where, engines
from lattica.config import MIB
from lattica.store.blocks.blockstore import BlockStore
from lattica.store.blocks.manifest import decode_manifest, to_hash
from tests.store import block_child
from tests.store.damage import good_bytes
from tests.store.test_manifest import noise

KILLS = int(os.environ.get("LATTICA_BLOCK_KILLS", "16"))
DATA = noise(3, 4_000_000)
PATIENCE = 60.0  # seconds for a child to say something

pytestmark = pytest.mark.slow
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["tests.store.block_child"])


class Child:
    """A process that tells."""

    def __init__(self, work: Any, *args: Any) -> None:
        self.ear, mouth = forks.Pipe(duplex=False)
        self.process = forks.Process(target=work, args=(*args, mouth), daemon=True)
        self.process.start()
        mouth.close()

    def hear(self) -> Any:
        """What it says next; None when it has ended."""
        assert self.ear.poll(PATIENCE), "it says nothing"
        try:
            return self.ear.recv()
        except EOFError:
            return None

    def outcome(self) -> Any:
        """The last thing that it says."""
        said = None
        while (heard := self.hear()) is not None:
            said = heard
        return said

    def kill(self) -> None:
        """As `kill -9`."""
        self.process.kill()
        self.process.join()


class World:
    """Two providers of a file, and a store to fetch it into."""

    def __init__(self, base: Path) -> None:
        self.seed = secrets.token_bytes(32)
        self.base = base
        self.here = base / "here"
        self.source = base / "file"
        self.source.write_bytes(DATA)
        self.manifest = ""
        self.providers: list[Child] = []
        self.where: list[Where] = []
        for number in range(2):
            self.start(number)

    def start(self, number: int) -> None:
        """A provider, or another in its place."""
        work = (self.seed, self.base / f"provider-{number}", self.source)
        child = Child(block_child.provide, *work)
        where, self.manifest = child.hear()
        self.providers[number : number + 1] = [child]
        self.where[number : number + 1] = [where]

    def fetch(self) -> Child:
        """A fetcher."""
        words = (self.seed, self.here, self.where, self.manifest)
        return Child(block_child.fetch, *words)

    def is_whole(self) -> bool:
        """Whether the file is here, and right."""
        store = BlockStore(self.here)
        (file,) = decode_manifest(store.manifest(to_hash(self.manifest))).files
        content = store.content(file)
        return content.is_whole and content.path.read_bytes() == DATA


@contextmanager
def running(base: Path) -> Iterator[World]:
    world = World(base)
    with ExitStack() as stack:
        stack.callback(lambda: [each.kill() for each in world.providers])
        yield world


@pytest.mark.timeout(60 + 3 * KILLS)
def test_kills_at_any_point_show_no_bad_byte_and_it_always_completes(tmp_path: Path) -> None:
    chance = random.Random(7)
    with running(tmp_path) as world:
        kills = completed = 0
        while kills < KILLS:
            fetcher = world.fetch()
            target = chance.randrange(40)  # steps
            heard: Any = 0
            while target and isinstance(heard, int):
                heard, target = fetcher.hear(), target - 1
            if chance.random() < 0.15:  # a provider goes; the other one has all
                number = chance.randrange(2)
                world.providers[number].kill()
                heard = fetcher.outcome()
                world.start(number)
            kills += 1
            fetcher.kill()
            assert good_bytes(world.here)
            if isinstance(heard, dict):
                assert world.is_whole()
                completed += 1
                shutil.rmtree(world.here)
        assert isinstance(world.fetch().outcome(), dict)
        assert world.is_whole()
        assert completed


@pytest.mark.parametrize("engine", engines("both"))
def test_a_killed_fetch_has_lost_no_more_than_what_was_on_its_way(engine: str) -> None:
    """Blocks that the provider has served twice."""
    assert anyio.run(resume, engine, 16 * MIB) <= 1


def test_two_processes_that_fetch_into_one_store_both_complete(tmp_path: Path) -> None:
    with running(tmp_path) as world:
        both = [world.fetch(), world.fetch()]
        for each in both:
            assert isinstance(each.outcome(), dict)
        assert world.is_whole()
        assert list((world.here / "parts").iterdir()) == []


FULL = """
import subprocess, sys
from pathlib import Path
from lattica.errors import StoreError
from lattica.store.blocks.blockstore import BlockStore
from lattica.store.blocks.manifest import BlockRef, FileEntry, Manifest, hash_of
from tests.store.test_manifest import noise

disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
store = BlockStore(disk / "store")
data = [noise(number, 65_536) for number in range(40)]
file = FileEntry("f", 40 * 65_536, tuple(BlockRef(hash_of(each), 65_536) for each in data))
encoded = Manifest((file,)).encode()
store.write_manifest(hash_of(encoded), encoded)
(disk / "ballast").write_bytes(bytes(2_500_000))
filling = store.fill([file])
kept = 0
try:
    for ref, block in zip(file.blocks, data):
        filling.write(ref, block)
        kept += 1
except StoreError as error:
    print(error)
assert 0 < kept < 40
try:
    store.add_bytes(noise(99, 2_000_000), 65_536)
except StoreError as error:
    print(error)
# What was kept is here, also for the next process; what was not is wanted.
again = BlockStore(disk / "store")
assert all(again.read(ref.hash) == block for ref, block in zip(file.blocks[:kept], data))
assert again.fill([file]).wanted() == list(file.blocks[kept:])
(disk / "ballast").unlink()
for ref, block in zip(file.blocks[kept:], data[kept:]):
    filling.write(ref, block)
assert filling.complete()
assert store.content(file).path.read_bytes() == b"".join(data)
"""


def test_a_disk_that_fills_up_is_told_and_loses_nothing(tmp_path: Path) -> None:
    """A real one, in a mount namespace of its own."""
    may = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    if may.returncode:
        pytest.skip("needs a mount namespace")
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("No space left on device") == 2
