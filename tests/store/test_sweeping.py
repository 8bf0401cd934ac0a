"""What a store forgets and what it keeps, also when several processes share it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from lattica.errors import BlockMissingError
from lattica.store.blocks import exporting
from lattica.store.blocks.blockstore import BlockStore
from lattica.store.blocks.manifest import BlockRef, FileEntry, Manifest, decode_manifest, hash_of
from lattica.store.blocks.sweeping import listing, sweep, verify
from tests.store.damage import spoil
from tests.store.test_manifest import noise

BLOCK = 64 * 1024
SIZE = 3 * BLOCK


def add(store: BlockStore, number: int, used: float) -> bytes:
    digest, _ = store.add_bytes(noise(number, SIZE), BLOCK)
    os.utime(store._manifests / digest.hex(), (used, used))
    return digest


@pytest.fixture
def store(tmp_path: Path) -> BlockStore:
    return BlockStore(tmp_path / "store")


def kept(store: BlockStore) -> set[bytes]:
    return {held.digest for held in listing(store)}


def test_the_least_recently_used_go_first_until_the_rest_has_room(store: BlockStore) -> None:
    old, middle, new = (add(store, number, used=1000.0 + number) for number in range(3))
    swept = sweep(store, 2 * SIZE)
    assert swept.manifests == (old,)
    assert (swept.files, swept.size) == (1, SIZE)
    assert kept(store) == {middle, new}
    assert verify(store).missing == 0
    assert sweep(store, 2 * SIZE).manifests == ()


def test_what_is_pinned_stays_also_above_the_quota(store: BlockStore) -> None:
    old, new = (add(store, number, used=1000.0 + number) for number in range(2))
    store.pin(old)
    assert sweep(store, 0).manifests == (new,)
    assert kept(store) == {old}
    store.pin(old, pinned=False)
    assert sweep(store, 0).manifests == (old,)
    with pytest.raises(BlockMissingError, match="not here"):
        store.pin(old)


def test_a_file_that_another_manifest_has_stays(store: BlockStore, tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    for number, name in enumerate(("shared", "own")):
        (tmp_path / "both" / name).write_bytes(noise(number, SIZE))
    one, _ = store.add(tmp_path / "both", BLOCK, lambda _: None)
    other, _ = store.add(tmp_path / "both" / "shared", BLOCK, lambda _: None)
    os.utime(store._manifests / one.hex(), (1000.0, 1000.0))
    swept = sweep(store, SIZE)
    assert swept.manifests == (one,)
    assert swept.size == SIZE  # the one that was its own
    assert verify(store, other).missing == 0


def test_without_a_quota_only_what_no_manifest_names_goes(store: BlockStore) -> None:
    digest = add(store, 1, used=1000.0)
    gone = add(store, 2, used=1000.0)
    store.forget(gone)
    swept = sweep(store, None)
    assert (swept.manifests, swept.size) == ((), SIZE)
    assert kept(store) == {digest}


def test_verify_finds_what_is_damaged_and_what_is_missing(store: BlockStore) -> None:
    digest = add(store, 1, used=1000.0)
    blocks = decode_manifest(store.manifest(digest)).files[0].blocks
    spoil(store, blocks[0].hash)
    found = verify(store, digest)
    assert (found.blocks, found.size, found.damaged, found.missing) == (2, 2 * BLOCK, 1, 0)
    spoil(store, blocks[1].hash)
    found = verify(store, digest)
    assert (found.blocks, found.size, found.damaged, found.missing) == (1, BLOCK, 1, 1)
    assert listing(store)[0].here == BLOCK


# ------------------------------------------------------------ several processes

HOLD = """
import sys
from pathlib import Path
from lattica.store.blocks.blockstore import BlockStore
store = BlockStore(Path(sys.argv[1]))
how, digest = sys.argv[2], bytes.fromhex(sys.argv[3])
with store.claims.using(digest) if how == "using" else store.claims.adding():
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holding(store: Path, how: str, digest: bytes) -> Iterator[subprocess.Popen[str]]:
    """Another process of the store."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store), how, digest.hex()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_what_another_process_uses_stays_until_it_is_killed(tmp_path: Path) -> None:
    store = BlockStore(tmp_path)
    digest = add(store, 1, used=1000.0)
    with holding(tmp_path, "using", digest) as process:
        assert sweep(store, 0).manifests == ()
        process.kill()
        process.wait()
        assert sweep(store, 0).manifests == (digest,)
    assert store.claims.in_use() == set()
    assert list((tmp_path / "uses").iterdir()) == []


def test_a_sweep_waits_for_another_process_that_adds(tmp_path: Path) -> None:
    """Blocks of what is being added are named by no manifest yet."""
    store = BlockStore(tmp_path)
    digest = add(store, 1, used=1000.0)
    store.forget(digest)
    with holding(tmp_path, "adding", digest) as process:
        sweeper = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from pathlib import Path\n"
                "from lattica.store.blocks.blockstore import BlockStore\n"
                "from lattica.store.blocks.sweeping import sweep\n"
                "store = BlockStore(Path(sys.argv[1])); print('open', flush=True)\n"
                "print(sweep(store, None).files, flush=True)",
                str(tmp_path),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        with sweeper:
            assert sweeper.stdout is not None
            assert sweeper.stdout.readline() == "open\n"
            with pytest.raises(subprocess.TimeoutExpired):
                sweeper.wait(0.5)  # it has nothing else to do than to wait
            assert len(list(store.contents())) == 1
            process.kill()
            assert sweeper.stdout.readline() == "1\n"


def test_opening_a_store_leaves_alone_what_another_process_is_writing(tmp_path: Path) -> None:
    store = BlockStore(tmp_path)
    stale = tmp_path / "tmp" / "123-0"
    stale.write_bytes(b"half")
    script = (
        "import sys, fcntl\n"
        "file = open(sys.argv[1], 'wb'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    mine = tmp_path / "tmp" / "124-0"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(mine)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        BlockStore(tmp_path)
        assert not stale.exists()
        assert mine.exists()
        process.kill()
    assert add(store, 1, used=1000.0)


def test_two_stores_that_fill_one_file_complete_each_other(tmp_path: Path) -> None:
    """Two processes, or containers: each sees what the other has written, and neither harms it."""
    data = [noise(number, BLOCK) for number in range(3)]
    refs = tuple(BlockRef(hash_of(each), BLOCK) for each in data)
    file = FileEntry("f", SIZE, refs)
    encoded = Manifest((file,)).encode()
    one, other = BlockStore(tmp_path), BlockStore(tmp_path)
    one.write_manifest(hash_of(encoded), encoded)
    other.write_manifest(hash_of(encoded), encoded)
    first, second = one.fill([file]), other.fill([file])
    first.write(refs[0], data[0])
    second.write(refs[1], data[1])
    assert not first.complete()
    second.write(refs[2], data[2])
    assert second.complete()
    first.write(refs[2], data[2])  # under way when the other was done
    assert first.complete()
    assert one.content(file).path.read_bytes() == b"".join(data)
    assert one.read(refs[1].hash) == other.read(refs[1].hash) == data[1]
    assert list((tmp_path / "parts").iterdir()) == []


def test_a_part_that_is_deleted_and_made_anew_is_not_believed(tmp_path: Path) -> None:
    data = [noise(number, BLOCK) for number in range(3)]
    refs = tuple(BlockRef(hash_of(each), BLOCK) for each in data)
    file = FileEntry("f", SIZE, refs)
    encoded = Manifest((file,)).encode()
    one = BlockStore(tmp_path)
    one.write_manifest(hash_of(encoded), encoded)
    filling = one.fill([file])
    filling.write(refs[0], data[0])
    filling.write(refs[1], data[1])
    BlockStore(tmp_path).drop(one.content(file).key)
    filling.write(refs[2], data[2])
    assert not filling.complete()
    assert one.fill([file]).wanted() == list(refs)


def test_two_that_export_to_one_folder_leave_a_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlockStore(tmp_path / "store")
    _, manifest = store.add_bytes(noise(1, SIZE), BLOCK)
    sync = exporting.sync

    def interrupted(file: BinaryIO) -> None:
        monkeypatch.setattr(exporting, "sync", sync)
        monkeypatch.setattr(exporting, "block_of", stopping)
        with pytest.raises(KeyboardInterrupt):
            store.export(manifest.files, tmp_path / "out")  # stopped in the middle
        monkeypatch.undo()
        sync(file)

    def stopping(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "sync", interrupted)
    monkeypatch.setattr(exporting, "clone", lambda *_: False)
    store.export(manifest.files, tmp_path / "out")
    assert (tmp_path / "out" / "bytes").read_bytes() == noise(1, SIZE)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bytes"]


def test_what_a_killed_export_has_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    store = BlockStore(tmp_path / "store")
    _, manifest = store.add_bytes(noise(1, SIZE), BLOCK)
    out = tmp_path / "out"
    out.mkdir()
    (out / ".0123.lattica-part").write_bytes(b"half")
    store.export(manifest.files, out)
    assert [path.name for path in out.iterdir()] == ["bytes"]


def test_what_is_removed_while_a_process_uses_it_goes_with_a_later_sweep(tmp_path: Path) -> None:
    store = BlockStore(tmp_path)
    digest = add(store, 1, used=1000.0)
    with holding(tmp_path, "using", digest):
        store.remove(digest)
        assert len(list(store.contents())) == 1
    assert sweep(store, None).files == 1


def test_two_stores_of_one_process_may_use_the_same(tmp_path: Path) -> None:
    one, other = BlockStore(tmp_path), BlockStore(tmp_path)
    digest = add(one, 1, used=1000.0)
    with one.claims.using(digest):
        with other.claims.using(digest):
            pass
        assert sweep(other, 0).manifests == ()
    assert sweep(other, 0).manifests == (digest,)


def test_an_error_of_who_uses_it_is_told_as_it_is(store: BlockStore) -> None:
    with pytest.raises(ConnectionResetError), store.claims.using(add(store, 1, used=1000.0)):
        raise ConnectionResetError
