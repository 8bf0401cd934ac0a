"""Large manifests: a root that lists parts, which are had, verified, shared and kept as blocks."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio
import pytest

from lattica.config import KIB, MIB, StoreConfig
from lattica.errors import BlockCorruptError, BlockMissingError, StoreError
from lattica.identity import grants
from lattica.link.memory import MemoryNetwork
from lattica.rpc import Buffer, method
from lattica.store import Blocks
from lattica.store.blocks import blockstore, tree
from lattica.store.blocks.blockstore import BlockStore
from lattica.store.blocks.manifest import (
    BlockRef,
    FileEntry,
    Hash,
    Manifest,
    decode_manifest,
    hash_of,
    to_hash,
    to_id,
)
from lattica.store.blocks.sweeping import listing, sweep, verify
from lattica.store.blocks.tree import (
    LONGEST,
    MAX_ENCODED,
    MAX_PART,
    PLAIN,
    Root,
    cut_manifest,
    decode_top,
    name_of,
)
from lattica.store.swarm.messages import Given, Want
from lattica.store.swarm.service import BlocksService
from tests.store.damage import lose, spoil
from tests.store.test_blocks import good_bytes, id_of, peer, peers, serve
from tests.store.test_manifest import noise

pytestmark = pytest.mark.anyio

BLOCK = 1 * KIB
CONFIG = StoreConfig(block=BLOCK, block_timeout=5.0)
DATA = noise(11, 500 * BLOCK)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests of some kilobytes are large, and their parts are small."""
    monkeypatch.setattr(blockstore, "PLAIN", 2 * KIB)
    monkeypatch.setattr(tree, "MARK", re.compile(rb"\x92\xc4\x20[\x00-\x0f]"))
    monkeypatch.setattr(tree, "SHORTEST", 512)
    return


def manifest_of(files: int, blocks: int, seed: int = 1) -> Manifest:
    """Of files that nobody has."""
    dice = random.Random(seed)
    return Manifest(
        tuple(
            FileEntry(
                f"layer-{file}",
                blocks * MIB,
                tuple(BlockRef(dice.randbytes(32), MIB) for _ in range(blocks)),
            )
            for file in range(files)
        )
    )


def parts_of(encoded: bytes) -> list[bytes]:
    parts, at = [], 0
    for size in cut_manifest(encoded):
        parts.append(encoded[at : at + size])
        at += size
    return parts


def root_of(store: BlockStore, name: str) -> Root:
    root = decode_top(store.manifest(to_hash(name)))
    assert isinstance(root, Root)
    return root


def root_over(data: bytes, part: int = 1024) -> tuple[Root, list[bytes]]:
    parts = [data[at : at + part] for at in range(0, len(data), part)]
    return Root(len(data), tuple(BlockRef(hash_of(each), len(each)) for each in parts)), parts


# ------------------------------------------------------------------------------- the format


def test_parts_are_the_manifest_and_none_is_large() -> None:
    encoded = manifest_of(40, 1000).encode()
    assert len(encoded) > PLAIN
    parts = parts_of(encoded)
    assert b"".join(parts) == encoded
    assert all(0 < len(part) <= LONGEST for part in parts)
    assert 8 < len(parts) < 64
    root, _ = root_over(encoded, LONGEST)
    assert decode_top(root.encode()) == root
    assert len(root.encode()) < 64 * KIB


def test_a_manifest_in_which_little_changed_shares_almost_all_its_parts() -> None:
    before = manifest_of(40, 1000)
    other = manifest_of(1, 1000, seed=2).files[0]
    old = set(parts_of(before.encode()))
    changed = list(before.files)
    changed[20] = FileEntry(changed[20].path, other.size, other.blocks)
    assert len(set(parts_of(Manifest(tuple(changed)).encode())) - old) <= 4
    more = (FileEntry("first", other.size, other.blocks), *before.files)
    assert len(set(parts_of(Manifest(more).encode())) - old) <= 5


def test_parts_without_a_place_to_cut_are_cut_somewhere() -> None:
    encoded = bytes(3 * LONGEST + 1)
    assert list(cut_manifest(encoded)) == [LONGEST, LONGEST, LONGEST, 1]


PART = BlockRef(bytes(32), 10)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (Root(11, (PART,)).encode(), "add up"),
        (Root(MAX_PART + 1, (BlockRef(bytes(32), MAX_PART + 1),)).encode(), "more than"),
        (Root(MAX_ENCODED + 1, (PART,)).encode(), "decode"),
        (Root(2**63, (PART,)).encode(), "decode"),
        (Root(1, ()).encode(), "decode"),
        (Root(10 * 5000, (PART,) * 5000).encode(), "decode"),
        (b"\x93\xa2v3\x01\x90", "decode"),
    ],
)
def test_a_root_that_is_none_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        decode_top(data)


def test_a_root_of_a_root_is_refused(tmp_path: Path) -> None:
    inner, _ = root_over(noise(1, 100_000), 64)
    encoded = inner.encode()
    outer, parts = root_over(encoded)
    store = BlockStore(tmp_path)
    data = outer.encode()
    store.write_manifest(hash_of(data), data)
    filling = store.fill([outer.file])
    for ref, part in zip(outer.parts, parts, strict=True):
        filling.write(ref, part)
    assert filling.complete()
    with pytest.raises(StoreError, match="decode"):
        store.whole(hash_of(data))
    assert BlockStore(tmp_path).manifests() == [hash_of(data)], "it harms nobody"
    assert list(sweep(store, None).manifests) == []


def test_manifests_that_are_not_large_have_the_ids_that_they_had(tmp_path: Path) -> None:
    digest, _ = BlockStore(tmp_path).add_bytes(b"abc" * 1000, 1024)
    assert to_id(digest) == "b3-4qvue4fdsh6v33bayuaxf22ozia6mb6u77aqtrmqutfjqyno3b4q"


# -------------------------------------------------------------------------------- the store


@pytest.mark.usefixtures("small")
def test_parts_are_kept_and_forgotten_with_their_manifest(tmp_path: Path) -> None:
    store = BlockStore(tmp_path)
    digest, manifest = store.add_bytes(DATA, BLOCK)
    other, _ = store.add_bytes(b"other", BLOCK)
    root = root_of(store, to_id(digest))
    assert len(root.parts) > 4
    assert store.whole(digest) == manifest
    assert dict(store.contents())[name_of(root.file).hex()] >= root.size
    assert {held.digest for held in listing(store)} == {digest, other}
    assert verify(store, digest).blocks == len(root.parts) + len(manifest.files[0].blocks)
    store.pin(digest)
    assert sweep(store, 0).manifests == (other,)
    assert BlockStore(tmp_path).whole(digest) == manifest
    store.pin(digest, pinned=False)
    swept = sweep(store, 0)
    assert (swept.manifests, swept.files) == ((digest,), 2)
    assert list((tmp_path / "files").iterdir()) == []


@pytest.mark.usefixtures("small")
def test_what_is_removed_takes_its_parts_along(tmp_path: Path) -> None:
    store = BlockStore(tmp_path)
    digest, _ = store.add_bytes(DATA, BLOCK)
    store.remove(digest)
    assert list((tmp_path / "files").iterdir()) == []


def test_a_manifest_that_nobody_would_take_is_not_made(tmp_path: Path) -> None:
    many = manifest_of(1, 450_000).files
    with pytest.raises(StoreError, match="several"):
        BlockStore(tmp_path)._added(list(many))


def test_a_large_manifest_of_the_former_version_is_still_read(tmp_path: Path) -> None:
    data = manifest_of(40, 1000).encode()
    assert len(data) > PLAIN
    BlockStore(tmp_path).write_manifest(hash_of(data), data)
    store = BlockStore(tmp_path)
    assert store.whole(hash_of(data)) == decode_manifest(data)
    assert store.manifest(hash_of(data)) == data


@pytest.mark.usefixtures("small")
def test_what_another_process_has_added_is_spoken_of(tmp_path: Path) -> None:
    store = BlockStore(tmp_path)
    digest, manifest = BlockStore(tmp_path).add_bytes(DATA, BLOCK)
    root = root_of(store, to_id(digest))
    assert store.spoken_of(name_of(root.file)) == Manifest((root.file,))
    assert store.spoken_of(digest) == manifest
    with pytest.raises(BlockMissingError):
        store.spoken_of(bytes(32))


@pytest.mark.usefixtures("small")
def test_a_damaged_part_is_told_by_who_looks_at_every_byte(tmp_path: Path) -> None:
    store = BlockStore(tmp_path)
    digest, _ = store.add_bytes(DATA, BLOCK)
    spoil(store, root_of(store, to_id(digest)).parts[2].hash)
    assert verify(store, digest).damaged + verify(store, digest).missing >= 1
    with pytest.raises(BlockMissingError, match="parts"):
        store.whole(digest)
    assert listing(store) == []


# --------------------------------------------------------------------------- between peers


class Noting(BlocksService):
    """Tells which blocks it was asked for."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.asked: list[bytes] = []

    async def block(self, digest: bytes) -> bytes:
        self.asked.append(digest)
        return await super().block(digest)


class Waiting(Noting):
    """Gives nothing before the others were asked too."""

    others: Sequence[Noting] = ()

    async def block(self, digest: bytes) -> bytes:
        self.asked.append(digest)
        while not all(other.asked for other in self.others):
            await anyio.sleep(0.001)
        return await BlocksService.block(self, digest)


class PartLiar(BlocksService):
    """Has other bytes than it says."""

    @method(scope=grants.CALL)
    async def give(self, digest: Hash, wants: AsyncIterator[Want]) -> AsyncIterator[Given]:
        async for want in wants:
            for number in want.blocks:
                yield Given(number, Buffer(b"wrong"))


@pytest.mark.usefixtures("small")
async def test_parts_come_from_all_who_have_them(tmp_path: Path) -> None:
    async with peers(tmp_path, 3, config=CONFIG) as (one, two, three):
        name = await one.add_bytes(DATA)
        assert await two.add_bytes(DATA) == name
        noting = [serve(each, Waiting) for each in (one, two)]
        noting[0].others, noting[1].others = noting[1:], noting[:1]
        parts = {part.hash for part in root_of(one._store, name).parts}
        assert await three.fetch_bytes(name, providers=[id_of(1), id_of(2)]) == DATA
        given = [[digest for digest in each.asked if digest in parts] for each in noting]
        assert all(given)
        assert parts.issubset(given[0] + given[1])
        assert root_of(three._store, name) == root_of(one._store, name)
        assert three.has(name)


@pytest.mark.usefixtures("small")
async def test_a_version_brings_only_the_parts_that_changed(tmp_path: Path) -> None:
    async with peers(tmp_path, 2, config=CONFIG) as (one, two):
        await two.fetch_bytes(await one.add_bytes(DATA), providers=[id_of(1)])
        changed = DATA[: 250 * BLOCK] + noise(12, 5 * BLOCK) + DATA[255 * BLOCK :]
        name = await one.add_bytes(changed)
        noting = serve(one, Noting)
        assert await two.fetch_bytes(name, providers=[id_of(1)]) == changed
        parts = {part.hash for part in root_of(one._store, name).parts}
        assert len(parts) > 8
        assert 0 < len(parts.intersection(noting.asked)) <= 3
        assert len(noting.asked) - len(parts.intersection(noting.asked)) == 5


@pytest.mark.usefixtures("small")
async def test_a_liar_about_parts_is_found_out(tmp_path: Path) -> None:
    async with peers(tmp_path, 3, config=CONFIG) as (one, two, three):
        name = await one.add_bytes(DATA)
        await two.add_bytes(DATA)
        serve(one, PartLiar)
        with pytest.raises(BlockCorruptError, match=id_of(1).short):
            await three.manifest(name, [id_of(1)])
        assert three.banned == {id_of(1)}
        assert three.manifests == ()
        assert await three.fetch_bytes(name, providers=[id_of(1), id_of(2)]) == DATA
        assert good_bytes(tmp_path, 3)


@pytest.mark.usefixtures("small")
async def test_a_tree_that_claims_to_be_huge_is_refused_before_anything_of_it_comes(
    tmp_path: Path,
) -> None:
    network = MemoryNetwork()
    cautious = StoreConfig(block=BLOCK, max_manifest=4 * KIB)
    async with (
        peer(network, 1, tmp_path, config=CONFIG) as one,
        peer(network, 2, tmp_path, config=cautious) as two,
    ):
        name = await one.add_bytes(DATA)
        noting = serve(one, Noting)
        with pytest.raises(StoreError, match="4096 are taken"):
            await two.manifest(name, [id_of(1)])
        assert two._store.manifests() == []
        assert noting.asked == []


@pytest.mark.usefixtures("small")
async def test_a_tree_goes_on_where_it_was(tmp_path: Path) -> None:
    async with peers(tmp_path, 2, config=CONFIG) as (one, two):
        name = await one.add_bytes(DATA)
        root = root_of(one._store, name)
        two._store.write_manifest(to_hash(name), root.encode())
        filling = two._store.fill([root.file])
        for part in root.parts[:-2]:
            filling.write(part, one._store.read(part.hash))
        assert sweep(two._store, None).files == 0, "it is needed"
        noting = serve(one, Noting)
        with pytest.raises(BlockMissingError):
            await two.manifest(name)
        found = await two.manifest(name, [id_of(1)])
        assert found == one._manifests[name]
        assert set(noting.asked) == {part.hash for part in root.parts[-2:]}


@pytest.mark.usefixtures("small")
async def test_a_damaged_part_is_had_again(tmp_path: Path) -> None:
    async with peers(tmp_path, 2, config=CONFIG) as (one, two):
        name = await one.add_bytes(DATA)
        await two.fetch_bytes(name, providers=[id_of(1)])
        part = root_of(one._store, name).parts[1]
        lose(two._store, part.hash)
        two._manifests.clear()  # as in a process that starts now
        noting = serve(one, Noting)
        assert await two.fetch_bytes(name, providers=[id_of(1)]) == DATA
        assert noting.asked == [part.hash]


@pytest.mark.usefixtures("small")
async def test_peers_that_begin_together_all_complete(tmp_path: Path) -> None:
    """Some are asked for blocks of files while the manifest itself is still coming to them."""
    async with peers(tmp_path, 4, config=CONFIG) as (one, *others):
        name = await one.add_bytes(DATA)
        found = []

        async def fetch(blocks: Blocks, number: int) -> None:
            named = [id_of(each) for each in range(1, 5) if each != number]
            found.append(await blocks.fetch_bytes(name, providers=named))

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for number, each in enumerate(others, 2):
                    tasks.start_soon(fetch, each, number)
        assert found == [DATA] * 3
