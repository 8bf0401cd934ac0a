"""Manifests and blocks on disk: what is cut where, what is refused, what a crash leaves."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattica.config import KIB
from lattica.errors import BlockCorruptError, BlockMissingError, StoreError
from lattica.store.blocks import content as content_module
from lattica.store.blocks.blockstore import BlockStore
from lattica.store.blocks.cutting import cut
from lattica.store.blocks.manifest import (
    BlockRef,
    FileEntry,
    Manifest,
    check_path,
    decode_manifest,
    hash_of,
    to_hash,
    to_id,
)
from tests.store.damage import has, lose, spoil

BLOCK = 256 * KIB


def nothing(_: int) -> None:
    pass


def write_safetensors(path: Path, tensors: dict[str, bytes]) -> None:
    """A file in the safetensors format, tensors in the given order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"".join(tensors.values()))


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def blocks_of(manifest: Manifest) -> dict[bytes, int]:
    return {block.hash: block.size for file in manifest.files for block in file.blocks}


# ---------------------------------------------------------------------------------- manifests


def test_an_id_is_one_word_and_names_the_hash():
    digest = hash_of(b"data")
    assert to_hash(to_id(digest)) == digest
    assert to_id(digest).isascii()


@pytest.mark.parametrize("text", ["", "b3-", "b3-" + "a" * 51, "x" * 55, "b3-" + "1" * 52, 5])
def test_what_is_no_id_is_told(text):
    with pytest.raises(StoreError, match="no manifest id"):
        to_hash(text)


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/passwd",
        "a/../../x",
        "a//b",
        "",
        ".",
        "a/.",
        "a\\..\\b",
        "C:x",
        "a\x00b",
        "a\nb",
        "x" * 201,
        "a/" * 600 + "b",
        "\udcff",
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(path):
    with pytest.raises(StoreError, match="no safe"):
        check_path(path)


def entry(path: str, *sizes: int, size: int | None = None) -> FileEntry:
    refs = tuple(BlockRef(bytes([s % 256]) * 32, s) for s in sizes)
    return FileEntry(path, sum(sizes) if size is None else size, refs)


@pytest.mark.parametrize(
    "manifest",
    [
        Manifest((entry("../evil", 5),)),
        Manifest((entry("a", 5), entry("a", 6))),
        Manifest((entry("a", 5), entry("a/b", 6))),
        Manifest((entry("a", 5, size=9),)),
        Manifest((entry("a", 0),)),
        Manifest((entry("a", 64 * 1024 * KIB),)),
        Manifest((FileEntry("a", 1, (BlockRef(b"short", 1),)),)),
        {"files": []},
        b"",
    ],
)
def test_a_manifest_that_cannot_be_right_is_refused(manifest):
    with pytest.raises(StoreError):
        decode_manifest(
            manifest.encode()
            if isinstance(manifest, Manifest)
            else msgspec.msgpack.encode(manifest)
        )


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_garbage_is_no_manifest(data):
    with pytest.raises(StoreError):
        decode_manifest(data)


# ------------------------------------------------------------------------------------ cutting


@given(
    sizes=st.lists(st.integers(0, 200_000), max_size=12),
    block=st.sampled_from([1000, 70_000, 1_000_000]),
)
@settings(max_examples=60, deadline=None)
def test_cuts_cover_a_file_whatever_its_tensors(tmp_path_factory, sizes, block):
    path = tmp_path_factory.mktemp("cut") / "model.safetensors"
    write_safetensors(path, {f"t{i}": bytes(size) for i, size in enumerate(sizes)})
    size = path.stat().st_size
    with path.open("rb") as file:
        lengths = list(cut(path, file, size, block))
    assert sum(lengths) == size
    assert all(0 < length <= block for length in lengths)


@pytest.mark.parametrize(
    "data", [b"", b"\x05", b"\xff" * 100, (9).to_bytes(8, "little") + b"{not json" + b"x" * 50]
)
def test_a_file_that_only_claims_to_be_safetensors_is_cut_all_the_same(tmp_path, data):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(data)
    with path.open("rb") as file:
        assert sum(cut(path, file, len(data), 10)) == len(data)


def test_a_new_version_shares_the_tensors_that_did_not_change(tmp_path):
    tensors = {f"layer.{n}": noise(n, 300_001 + n) for n in range(8)}
    tensors |= {f"norm.{n}": noise(100 + n, 512) for n in range(8)}
    store = BlockStore(tmp_path / "store")
    write_safetensors(tmp_path / "model.safetensors", tensors)
    _, old = store.add(tmp_path / "model.safetensors", BLOCK, nothing)
    # One tensor changes, another grows: everything after it lies elsewhere in the file.
    tensors["layer.3"] = noise(50, 300_004)
    tensors["layer.0"] = noise(51, 400_000)
    write_safetensors(tmp_path / "model.safetensors", tensors)
    _, new = store.add(tmp_path / "model.safetensors", BLOCK, nothing)
    shared = sum(size for block, size in blocks_of(new).items() if block in blocks_of(old))
    assert shared >= new.size - 400_000 - 300_004 - 2000
    # Small tensors share blocks: not one file each.
    assert len(blocks_of(new)) < 8 * 2 + 8


def test_a_row_that_changes_costs_one_block_and_added_rows_their_own(tmp_path):
    path, row, rows = tmp_path / "model.safetensors", 3000, 400
    header = '{"w": {"dtype": "U8", "shape": [%d, %d], "data_offsets": [0, %d]}}'

    def write(data: list[bytes]) -> set[bytes]:
        encoded = (header % (len(data), row, len(data) * row)).ljust(100).encode()
        path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"".join(data))
        return set(blocks_of(store.add(path, BLOCK, nothing)[1]))

    store = BlockStore(tmp_path / "store")
    data = [noise(number, row) for number in range(rows)]
    old = write(data)
    for number in (BLOCK // row, 2 * (BLOCK // row) - 1):  # where blocks meet
        changed = [*data]
        changed[number] = noise(1000, row)
        assert len(write(changed) - old) == 1
    more = write([*data, noise(2000, row)])
    assert len(more - old) <= 2  # the last one, and the header


# --------------------------------------------------------------------------------- the store


def test_a_folder_comes_out_as_it_went_in(tmp_path):
    source = tmp_path / "source"
    (source / "deep/er").mkdir(parents=True)
    contents = {"a.bin": noise(1, 600_000), "deep/er/b.txt": b"text", "deep/empty": b""}
    for name, data in contents.items():
        (source / name).write_bytes(data)
    (source / ".hidden").write_text("left out")
    store = BlockStore(tmp_path / "store")
    done: list[int] = []
    digest, manifest = store.add(source, BLOCK, done.append)
    assert sum(done) == manifest.size
    assert decode_manifest(store.manifest(digest)) == manifest
    store.export(manifest.files, tmp_path / "out")
    found = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert found == contents


def test_the_same_content_has_the_same_id_wherever_it_is_added(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(noise(1, 300_000))
    ids = {
        BlockStore(tmp_path / f"store-{name}").add(tmp_path / name, BLOCK, nothing)[0]
        for name in ("one", "two")
    }
    assert len(ids) == 1


@pytest.mark.parametrize("what", ["absent", "empty"])
def test_nothing_to_add_is_told(tmp_path, what):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=what):
        BlockStore(tmp_path / "store").add(tmp_path / what, BLOCK, nothing)


GOOD = BlockRef(hash_of(b"good"), 4)
FILE = FileEntry("f", 4, (GOOD,))


def with_manifest(directory: Path, *files: FileEntry) -> BlockStore:
    """A store that knows of these files, and has none of their bytes."""
    store = BlockStore(directory)
    data = Manifest(files).encode()
    store.write_manifest(hash_of(data), data)
    return store


def test_wrong_bytes_are_never_kept(tmp_path):
    store = with_manifest(tmp_path, FILE)
    filling = store.fill([FILE])
    for data in (b"evil", b"go", b"good and more"):
        with pytest.raises(BlockCorruptError):
            filling.write(GOOD, data)
    assert not has(store, GOOD.hash)
    assert not filling.complete()
    with pytest.raises(BlockMissingError):
        store.read(GOOD.hash)
    with pytest.raises(BlockCorruptError):
        store.write_manifest(hash_of(b"x"), b"y")
    assert len(store.manifests()) == 1


def test_a_block_that_went_bad_on_disk_is_not_served(tmp_path):
    store = with_manifest(tmp_path, FILE)
    filling = store.fill([FILE])
    filling.write(GOOD, b"good")
    assert filling.complete()
    spoil(store, GOOD.hash)
    with pytest.raises(BlockMissingError, match="damaged"):
        store.read(GOOD.hash)
    assert not has(store, GOOD.hash)
    filling = store.fill([FILE])
    assert filling.wanted() == [GOOD]
    filling.write(GOOD, b"good")
    assert filling.complete()
    assert store.read(GOOD.hash) == b"good"


def test_half_written_files_are_cleared_and_a_short_file_is_not_here(tmp_path):
    store = BlockStore(tmp_path)
    _, manifest = store.add_bytes(b"good", BLOCK)
    (tmp_path / "tmp" / "1-1").write_bytes(b"ha")
    (tmp_path / "manifests" / "junk").write_bytes(b"")
    content = store.content(manifest.files[0])
    content.path.unlink()
    content.path.write_bytes(b"go")  # what a file system without our fsync could leave
    store = BlockStore(tmp_path)
    assert not store.content(manifest.files[0]).is_whole
    assert list((tmp_path / "tmp").iterdir()) == []
    assert len(store.manifests()) == 1


def test_what_a_part_has_is_found_again_and_nothing_else(tmp_path):
    data = [noise(number, BLOCK) for number in range(4)]
    refs = tuple(BlockRef(hash_of(each), BLOCK) for each in data)
    file = FileEntry("f", 4 * BLOCK, refs)
    filling = with_manifest(tmp_path, file).fill([file])
    for number in (0, 1, 3):
        filling.write(refs[number], data[number])
    # A crash: one block has reached the disk in part.
    store = BlockStore(tmp_path)
    with store.content(file)._part.open("r+b") as part:
        part.seek(BLOCK + 4096)
        part.write(bytes(4096))
    with pytest.raises(BlockMissingError):
        store.read(refs[1].hash)
    assert store.read(refs[3].hash) == data[3], "a part is read from, but only what is good"
    filling = BlockStore(tmp_path).fill([file])
    assert filling.wanted() == [refs[1], refs[2]]
    for number in (1, 2):
        filling.write(refs[number], data[number])
    assert filling.complete()
    assert store.content(file).path.read_bytes() == b"".join(data)
    assert store.read(refs[1].hash) == data[1], "another process learns of it"


def test_a_new_version_takes_what_the_old_has(tmp_path):
    data = [noise(number, BLOCK) for number in range(5)]
    store = BlockStore(tmp_path)
    store.add_bytes(b"".join(data[:4]), BLOCK)
    refs = [BlockRef(hash_of(each), BLOCK) for each in data]
    file = FileEntry("new", 4 * BLOCK, (refs[4], refs[1], refs[2], refs[1]))
    filling = store.fill([file])
    assert filling.size == 4 * BLOCK
    filling.copy(nothing)
    assert filling.wanted() == [refs[4]]
    filling.write(refs[4], data[4])
    assert filling.complete()
    assert store.content(file).path.read_bytes() == data[4] + data[1] + data[2] + data[1]


def test_what_is_added_again_is_not_written_again(tmp_path):
    store = BlockStore(tmp_path / "store")
    (tmp_path / "f").write_bytes(noise(1, 3 * BLOCK))
    _, manifest = store.add(tmp_path / "f", BLOCK, nothing)
    path = store.content(manifest.files[0]).path
    assert path.read_bytes() == noise(1, 3 * BLOCK)
    assert path.stat().st_mode & 0o777 == 0o444
    before = path.stat().st_ino
    assert store.add(tmp_path / "f", BLOCK, nothing)[1] == manifest
    assert path.stat().st_ino == before
    (tmp_path / "f").write_bytes(noise(1, 2 * BLOCK) + noise(2, BLOCK))
    _, other = store.add(tmp_path / "f", BLOCK, nothing)
    assert store.content(other.files[0]).path.read_bytes() == (tmp_path / "f").read_bytes()


def test_a_store_links_to_whole_files_only(tmp_path):
    store = BlockStore(tmp_path / "store")
    (tmp_path / "source/sub").mkdir(parents=True)
    (tmp_path / "source/sub/file").write_bytes(noise(1, 2 * BLOCK))
    digest, manifest = store.add(tmp_path / "source", BLOCK, nothing)
    folder = store.link(digest, manifest.files)
    assert store.link(digest, manifest.files) == folder
    assert (folder / "sub/file").read_bytes() == noise(1, 2 * BLOCK)
    assert (folder / "sub/file").samefile(store.content(manifest.files[0]).path)
    # What is found to be damaged is not shown any more, through links that exist either.
    lose(store, manifest.files[0].blocks[1].hash)
    assert not (folder / "sub/file").exists()
    with pytest.raises(BlockMissingError, match="sub/file"):
        store.link(digest, manifest.files)
    store.remove(digest)
    assert not folder.exists()


def old_layout(directory: Path, store: BlockStore) -> None:
    """Make a store's files what they were: each block a file."""
    for content in store._index.contents():
        data, at = content.path.read_bytes(), 0
        for block in content.blocks:
            path = directory / "blocks" / block.hash.hex()[:2] / block.hash.hex()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data[at : at + block.size])
            at += block.size
        content.path.unlink()


def test_a_store_of_the_old_layout_is_taken_over(tmp_path):
    store = BlockStore(tmp_path)
    shared = noise(1, BLOCK)
    _, one = store.add_bytes(shared + noise(2, 1000), BLOCK)
    _, two = store.add_bytes(shared + noise(3, 1000), BLOCK)
    old_layout(tmp_path, store)
    bad = two.files[0].blocks[1].hash.hex()
    (tmp_path / "blocks" / bad[:2] / bad).write_bytes(bytes(1000))
    store = BlockStore(tmp_path)
    assert not (tmp_path / "blocks").exists()
    assert store.content(one.files[0]).path.read_bytes() == shared + noise(2, 1000)
    assert store.fill(two.files).wanted() == [two.files[0].blocks[1]]


def test_an_old_store_that_does_not_fit_is_told_and_lost_nothing(tmp_path, monkeypatch):
    store = BlockStore(tmp_path)
    _, manifest = store.add_bytes(noise(1, 2 * BLOCK), BLOCK)
    old_layout(tmp_path, store)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(content_module, "write_at", full)
    with pytest.raises(StoreError, match="make room"):
        BlockStore(tmp_path)
    monkeypatch.undo()
    assert BlockStore(tmp_path).content(manifest.files[0]).is_whole


def test_a_link_out_of_the_destination_is_not_followed(tmp_path):
    store = BlockStore(tmp_path / "store")
    (tmp_path / "source/sub").mkdir(parents=True)
    (tmp_path / "source/sub/file").write_bytes(b"data")
    _, manifest = store.add(tmp_path / "source", BLOCK, nothing)
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="leads out"):
        store.export(manifest.files, tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_export_without_a_block_leaves_the_old_file(tmp_path):
    store = BlockStore(tmp_path / "store")
    _, manifest = store.add_bytes(noise(1, 600_000), BLOCK)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/bytes").write_text("old")
    lose(store, manifest.files[0].blocks[-1].hash)
    with pytest.raises(BlockMissingError):
        store.export(manifest.files, tmp_path / "out")
    assert (tmp_path / "out/bytes").read_text() == "old"


def test_removing_keeps_what_others_share(tmp_path):
    store = BlockStore(tmp_path / "store")
    (tmp_path / "folder").mkdir()
    for name, data in (("shared", noise(1, BLOCK)), ("own", noise(2, BLOCK))):
        (tmp_path / "folder" / name).write_bytes(data)
    first, both = store.add(tmp_path / "folder", BLOCK, nothing)
    second, one = store.add(tmp_path / "folder/shared", BLOCK, nothing)
    store.remove(first)
    store.remove(first)
    assert store.manifests() == [second]
    assert store.content(one.files[0]).is_whole
    own = next(file for file in both.files if file.path == "own")
    assert not store.content(own).is_whole
    with pytest.raises(BlockMissingError):
        store.read(own.blocks[0].hash)


def test_a_directory_that_cannot_be_used_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot use"):
        BlockStore(tmp_path / "file")


def test_deep_paths_cost_no_more_than_they_are_long():
    deep = "/".join("a" * 500)
    files = tuple(FileEntry(f"{deep}/{index}", 0, ()) for index in range(2000))
    data = Manifest(files).encode()
    tracemalloc.start()
    try:
        assert len(decode_manifest(data).files) == 2000
        assert tracemalloc.get_traced_memory()[1] < 6 * len(data)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("paths", [("a", "a/b"), ("x/y/z", "x/y"), ("a-", "a/b", "a")])
def test_a_path_is_a_file_or_a_folder(paths):
    data = Manifest(tuple(FileEntry(path, 0, ()) for path in paths)).encode()
    with pytest.raises(StoreError, match="a file and a folder"):
        decode_manifest(data)
