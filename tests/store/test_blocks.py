"""Blocks between peers: many providers, liars, losses, crashes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from safetensors import safe_open

from lattica.clock import ManualClock
from lattica.config import KIB, StoreConfig
from lattica.dht import Dht
from lattica.errors import (
    BlockCorruptError,
    BlockMissingError,
    BusyError,
    PermissionDeniedError,
    StoreError,
)
from lattica.identity import grants
from lattica.identity.keys import PeerId
from lattica.identity.tickets import Contact
from lattica.link.memory import MemoryLinks, MemoryNetwork
from lattica.rpc import Rpc, method
from lattica.store import Blocks, FileEntry, Manifest
from lattica.store.blocks.blockstore import BlockStore
from lattica.store.blocks.content import Content
from lattica.store.blocks.manifest import Hash, hash_of, to_id
from lattica.store.blocks.sweeping import sweep
from lattica.store.swarm.messages import Given, Want
from lattica.store.swarm.service import SERVICE, BlocksService
from tests.store import damage
from tests.store.damage import lose, spoil
from tests.store.mesh import NOW, home, identity, membership
from tests.store.test_manifest import noise, write_safetensors

pytestmark = pytest.mark.anyio

CONFIG = StoreConfig(block=64 * KIB, block_timeout=5.0)
DATA = noise(7, 1_000_000)


def id_of(number: int) -> PeerId:
    return identity(number).peer_id


@contextlib.asynccontextmanager
async def peer(
    network: MemoryNetwork,
    number: int,
    base: Path,
    *scopes: str,
    config: StoreConfig = CONFIG,
    with_dht: bool = False,
) -> AsyncIterator[Blocks]:
    clock = ManualClock(NOW)
    links = MemoryLinks(
        network, identity(number), membership(identity(number), *scopes), clock=clock
    )
    async with contextlib.AsyncExitStack() as stack:
        rpc = await stack.enter_async_context(Rpc(links))
        dht = None
        if with_dht:
            dht = await stack.enter_async_context(
                Dht(rpc, identity(number), clock=clock, addresses=lambda: (f"memory:{number}",))
            )
        blocks = await stack.enter_async_context(Blocks(home(base, number), rpc, dht, config))
        if dht is not None and number > 1:
            await dht.bootstrap([Contact(id_of(1), ("memory:1",))])
        yield blocks
        links.leave()


@contextlib.asynccontextmanager
async def peers(base: Path, count: int, **options: Any) -> AsyncIterator[list[Blocks]]:
    network = MemoryNetwork()
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(peer(network, number, base, **options))
            for number in range(1, count + 1)
        ]


S = TypeVar("S", bound=BlocksService)


def serve(blocks: Blocks, kind: type[S]) -> S:
    """Let a peer answer in a way of its own."""
    service = kind(blocks._store, blocks._sharing, blocks._tasks, parallel=4)
    blocks._rpc.unregister(SERVICE)
    blocks._rpc.register(SERVICE, service)
    return service


def good_bytes(base: Path, number: int) -> bool:
    """Whether whatever can be read back at a peer has the bytes of its name."""
    return damage.good_bytes(home(base, number))


async def test_bytes_go_from_peer_to_peer_through_the_dht_alone(tmp_path):
    async with peers(tmp_path, 4, with_dht=True) as (_, two, _, four):
        name = await two.add_bytes(DATA)
        assert two.has(name)
        assert not four.has(name)
        assert await four.fetch_bytes(name) == DATA
        assert four.has(name)
        assert four.size(name) == len(DATA)
        report = four.report(name)
        assert report.provided == {id_of(2): len(DATA)}
        assert two.served == len(DATA)


async def test_a_fetcher_becomes_a_provider(tmp_path):
    network = MemoryNetwork()
    options: dict[str, Any] = {"with_dht": True}
    async with (
        peer(network, 1, tmp_path, **options),
        peer(network, 3, tmp_path, **options) as three,
    ):
        async with peer(network, 2, tmp_path, **options) as two:
            name = await two.add_bytes(DATA)
            assert await three.fetch_bytes(name) == DATA
        async with peer(network, 4, tmp_path, **options) as four:
            assert await four.fetch_bytes(name) == DATA
            assert four.report(name).provided == {id_of(3): len(DATA)}


async def test_a_restarted_provider_announces_itself_again(tmp_path):
    network = MemoryNetwork()
    async with peer(network, 1, tmp_path, with_dht=True):
        async with peer(network, 2, tmp_path, with_dht=True) as two:
            name = await two.add_bytes(DATA)
        async with (
            peer(network, 2, tmp_path, with_dht=True) as two,
            peer(network, 3, tmp_path, with_dht=True) as three,
        ):
            assert two.has(name)
            assert await three.fetch_bytes(name) == DATA


async def test_a_folder_is_fetched_from_several_providers_at_once(tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    write_safetensors(source / "model.safetensors", {f"t{n}": noise(n, 200_000) for n in range(8)})
    (source / "config.json").write_text("{}")
    async with peers(tmp_path, 3) as (one, two, three):
        steps: list[tuple[int, int, PeerId | None]] = []
        name = await one.add(source, progress=lambda *step: steps.append(step))
        assert steps[-1] == (one.size(name), one.size(name), None)
        assert await two.add(source) == name
        steps.clear()
        dest = await three.fetch(
            name,
            tmp_path / "out",
            progress=lambda *step: steps.append(step),
            providers=[id_of(1), id_of(2)],
        )
        for path in source.iterdir():
            assert (dest / path.name).read_bytes() == path.read_bytes()
        report = three.report(name)
        assert set(report.provided) == {id_of(1), id_of(2)}
        assert sum(report.provided.values()) == report.total == three.size(name)
        assert steps[0] == (0, report.total, None)
        assert [done for done, _, _ in steps] == sorted(done for done, _, _ in steps)
        assert steps[-1][:2] == (report.total, report.total)


async def test_only_the_files_asked_for_are_fetched(tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    (source / "small").write_bytes(b"small")
    (source / "large").write_bytes(DATA)
    async with peers(tmp_path, 2) as (one, two):
        name = await one.add(source)
        dest = await two.fetch(name, tmp_path / "out", files=["small"], providers=[id_of(1)])
        assert [path.name for path in dest.iterdir()] == ["small"]
        assert two.report(name).total == 5
        assert not two.has(name)
        assert [file.path for file in (await two.manifest(name)).files] == ["large", "small"]
        with pytest.raises(StoreError, match="no file other"):
            await two.fetch(name, tmp_path / "out", files=["other"])


async def test_a_new_version_costs_only_what_changed(tmp_path):
    tensors = {f"t{n}": noise(n, 200_000) for n in range(8)}
    path = tmp_path / "model.safetensors"
    async with peers(tmp_path, 2) as (one, two):
        write_safetensors(path, tensors)
        await two.fetch(await one.add(path), tmp_path / "out", providers=[id_of(1)])
        tensors["t3"] = noise(99, 200_000)
        write_safetensors(path, tensors)
        name = await one.add(path)
        await two.fetch(name, tmp_path / "out", providers=[id_of(1)])
        assert (tmp_path / "out/model.safetensors").read_bytes() == path.read_bytes()
        assert sum(two.report(name).provided.values()) == 200_000
        assert two.report(name).held == path.stat().st_size - 200_000


async def test_a_model_is_mapped_from_the_store_itself(tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    tensors = {f"t{n}": noise(n, 200_000) for n in range(4)}
    write_safetensors(source / "model.safetensors", tensors)
    (source / "config.json").write_text("{}")
    async with peers(tmp_path, 2) as (one, two):
        name = await one.add(source)
        folder = await two.path(name, files=["config.json"], providers=[id_of(1)])
        assert [path.name for path in folder.iterdir()] == ["config.json"]
        assert await two.path(name, providers=[id_of(1)]) == folder
        with safe_open(folder / "model.safetensors", "numpy") as mapped:
            assert {key: mapped.get_tensor(key).tobytes() for key in tensors} == tensors
        files = [path for path in home(tmp_path, 2).rglob("*") if path.is_file()]
        on_disk = {path.stat().st_ino: path.stat().st_size for path in files}
        assert sum(on_disk.values()) < two.size(name) + 10_000, "there is one copy"
        # It is spared for as long as somebody may map it, by other processes too.
        other = BlockStore(two._directory)
        assert sweep(other, 0).manifests == ()
        await two.remove(name)
        assert not folder.exists()
        assert list(other.contents()) == []


class Liar(BlocksService):
    """Right manifests, wrong bytes."""

    asked = 0

    async def block(self, digest: bytes) -> bytes:
        self.asked += 1
        data = bytearray(self._store.read(digest))
        data[0] ^= 1
        return bytes(data)


async def test_a_liar_is_banned_and_the_honest_provider_gives_all(tmp_path):
    async with peers(tmp_path, 3) as (one, two, three):
        name = await one.add_bytes(DATA)
        await two.add_bytes(DATA)
        liar = serve(one, Liar)
        both = [id_of(1), id_of(2)]
        assert await three.fetch_bytes(name, providers=both) == DATA
        assert three.report(name).provided == {id_of(2): len(DATA)}
        assert three.banned == {id_of(1)}
        assert 1 <= three.counters["corrupt"] <= CONFIG.per_provider
        assert good_bytes(tmp_path, 3)
        while liar._giving:  # it reads ahead
            await anyio.sleep(0.01)
        asked = liar.asked
        await three.remove(name)
        assert await three.fetch_bytes(name, providers=both) == DATA
        assert liar.asked == asked, "who lied once is not asked again"


async def test_only_liars_left_is_told_as_such(tmp_path):
    async with peers(tmp_path, 2) as (one, two):
        name = await one.add_bytes(DATA)
        serve(one, Liar)
        with pytest.raises(BlockCorruptError, match=id_of(1).short):
            await two.fetch_bytes(name, providers=[id_of(1)])
        assert good_bytes(tmp_path, 2)


async def test_nobody_has_it_is_told_with_the_id_and_who_was_asked(tmp_path):
    name = to_id(hash_of(b"nothing"))
    async with peers(tmp_path, 2) as (_, two):
        with pytest.raises(BlockMissingError, match=f"{name}.*{id_of(1).short}"):
            await two.fetch(name, tmp_path / "out", providers=[id_of(1)])
        with pytest.raises(BlockMissingError, match="no provider"):
            await two.fetch_bytes(name)
        with pytest.raises(BlockMissingError, match=id_of(5).short):
            await two.fetch_bytes(name, providers=[id_of(5)])
    assert not (tmp_path / "out").exists()


async def test_a_block_that_nobody_has_is_missing_after_all_were_asked(tmp_path):
    async with peers(tmp_path, 3) as (one, two, three):
        name = await one.add_bytes(DATA)
        await two.add_bytes(DATA)
        block = one._manifests[name].files[0].blocks[3]
        for blocks in (one, two):
            lose(blocks._store, block.hash)
        with pytest.raises(BlockMissingError, match=name) as caught:
            await three.fetch_bytes(name, providers=[id_of(1), id_of(2)])
        assert id_of(1).short in str(caught.value)
        assert id_of(2).short in str(caught.value)
        filling = three._store.fill(three._manifests[name].files)
        assert filling.wanted() == [block], "the rest is kept"


async def test_providers_with_different_halves_complete_each_other(tmp_path):
    async with peers(tmp_path, 3) as (one, two, three):
        name = await one.add_bytes(DATA)
        await two.add_bytes(DATA)
        for number, block in enumerate(one._manifests[name].files[0].blocks):
            lose((one, two)[number % 2]._store, block.hash)
        assert await three.fetch_bytes(name, providers=[id_of(1), id_of(2)]) == DATA


class Vanishing(BlocksService):
    """Goes away after some blocks."""

    left = 4
    blocks: Blocks

    async def block(self, digest: bytes) -> bytes:
        self.left -= 1
        if self.left < 0:
            self.blocks._rpc.links.leave()
            await anyio.sleep_forever()
        return self._store.read(digest)


async def test_a_provider_that_vanishes_is_replaced_and_the_rest_resumed(tmp_path):
    async with peers(tmp_path, 3) as (one, two, three):
        name = await one.add_bytes(DATA)
        vanishing = serve(one, Vanishing)
        vanishing.blocks = one
        with anyio.fail_after(10):
            with pytest.raises(BlockMissingError, match=id_of(1).short):
                await three.fetch_bytes(name, providers=[id_of(1)])
            got = three.report(name).provided[id_of(1)]
            assert 0 < got <= 4 * CONFIG.block
            await two.add_bytes(DATA)
            assert await three.fetch_bytes(name, providers=[id_of(1), id_of(2)]) == DATA
        assert three.report(name).held == got
        assert three.report(name).provided == {id_of(2): len(DATA) - got}


class Busy(BlocksService):
    """Has no time at first."""

    times = 3

    @method(scope=grants.CALL)
    async def give(self, digest: Hash, wants: AsyncIterator[Want]) -> AsyncIterator[Given]:
        self.times -= 1
        if self.times >= 0:
            raise BusyError("busy", retry_after=0.01)
        async for given in super().give(digest, wants):
            yield given


async def test_a_busy_provider_is_asked_again(tmp_path):
    async with peers(tmp_path, 2) as (one, two):
        name = await one.add_bytes(DATA)
        serve(one, Busy)
        assert await two.fetch_bytes(name, providers=[id_of(1)]) == DATA


class Narrow(BlocksService):
    """Behind a link that brings nothing in time when asked for several blocks at once."""

    owed = 0
    given = 0
    stops_after = 1_000_000
    asked = 0

    @method(scope=grants.CALL)
    async def give(self, digest: Hash, wants: AsyncIterator[Want]) -> AsyncIterator[Given]:
        async def counted() -> AsyncIterator[Want]:
            async for want in wants:
                self.owed += len(want.blocks)
                yield want

        self.owed = 0
        async for given in super().give(digest, counted()):
            self.owed -= 1
            yield given

    async def block(self, digest: bytes) -> bytes:
        self.asked += 1
        if self.owed > 1 or self.given >= self.stops_after:
            await anyio.sleep_forever()
        self.given += 1
        return self._store.read(digest)


IMPATIENT = StoreConfig(block=64 * KIB, block_timeout=0.25)


async def test_an_only_provider_behind_a_narrow_link_gives_all_one_by_one(tmp_path):
    async with peers(tmp_path, 2, config=IMPATIENT) as (one, two):
        name = await one.add_bytes(DATA)
        serve(one, Narrow)
        with anyio.fail_after(20):
            assert await two.fetch_bytes(name, providers=[id_of(1)]) == DATA
        assert two.counters["provider_stalled"] >= 1
        assert two.counters["provider_failed"] == 0


async def test_a_provider_that_stays_silent_is_given_up_and_what_it_gave_is_kept(tmp_path):
    async with peers(tmp_path, 2, config=IMPATIENT) as (one, two):
        name = await one.add_bytes(DATA)
        narrow = serve(one, Narrow)
        narrow.stops_after = 3
        with anyio.fail_after(20), pytest.raises(BlockMissingError, match=id_of(1).short):
            await two.fetch_bytes(name, providers=[id_of(1)])
        gave = two.report(name).provided[id_of(1)]
        block, last = IMPATIENT.block, len(DATA) % IMPATIENT.block
        assert gave in (3 * block, 2 * block + last)
        assert narrow.asked <= 3 + 4  # it is not asked for ever
        narrow.stops_after = 1_000_000
        assert await two.fetch_bytes(name, providers=[id_of(1)]) == DATA
        assert two.report(name).held == gave


async def test_a_stranger_gets_no_block(tmp_path):
    network = MemoryNetwork()
    async with peer(network, 1, tmp_path) as one, peer(network, 2, tmp_path, grants.HOST) as two:
        name = await one.add_bytes(DATA)
        with pytest.raises(BlockMissingError, match="call"):
            await two.fetch_bytes(name, providers=[id_of(1)])
        with pytest.raises(PermissionDeniedError):
            await two._bringing.client(id_of(1), 5.0).manifest(hash_of(b""))


async def test_a_manifest_that_leads_elsewhere_is_refused_and_writes_nothing(tmp_path):
    async with peers(tmp_path, 2) as (one, two):
        await one.add_bytes(b"payload")
        good = one._manifests[one.manifests[0]].files[0]
        evil = Manifest((FileEntry("../evil", good.size, good.blocks),))
        digest = hash_of(evil.encode())
        one._store.write_manifest(digest, evil.encode())
        with pytest.raises(StoreError, match="no safe relative path"):
            await two.fetch(to_id(digest), tmp_path / "deep/out", providers=[id_of(1)])
        assert not (tmp_path / "deep").exists()
        assert two.manifests == ()


async def test_a_fetch_that_does_not_fit_on_the_disk_is_told_before_it_starts(
    tmp_path, monkeypatch
):
    async with peers(tmp_path, 2) as (one, two):
        name = await one.add_bytes(DATA)
        monkeypatch.setattr(two._store, "free", lambda: 1000)
        with pytest.raises(StoreError, match="needs 1000000 bytes"):
            await two.fetch_bytes(name, providers=[id_of(1)])
        assert one.served == 0


async def test_a_disk_that_fills_up_ends_the_fetch_with_the_reason(tmp_path, monkeypatch):
    async with peers(tmp_path, 2) as (one, two):
        name = await one.add_bytes(DATA)

        def full(*_: object) -> None:
            raise StoreError("disk full")

        monkeypatch.setattr(Content, "write", full)
        with pytest.raises(StoreError, match="disk full"):
            await two.fetch_bytes(name, providers=[id_of(1)])
        assert two.banned == set()


async def test_blocks_that_the_disk_damaged_are_fetched_again_and_no_others(tmp_path):
    async with peers(tmp_path, 2) as (one, two):
        name = await one.add_bytes(DATA)
        assert await two.fetch_bytes(name, providers=[id_of(1)]) == DATA
        for block in two._manifests[name].files[0].blocks[3:5]:
            spoil(two._store, block.hash)
        assert await two.fetch_bytes(name, providers=[id_of(1)]) == DATA
        assert two.report(name).provided == {id_of(1): 2 * CONFIG.block}
        assert good_bytes(tmp_path, 2)


async def test_a_damaged_block_that_nobody_gives_is_told(tmp_path):
    async with peers(tmp_path, 2) as (one, _):
        name = await one.add_bytes(DATA)
        spoil(one._store, one._manifests[name].files[0].blocks[3].hash)
        with pytest.raises(BlockMissingError, match=name):
            await one.fetch(name, tmp_path / "out")


async def test_two_fetches_at_once_both_succeed(tmp_path):
    async with peers(tmp_path, 3) as (one, two, three):
        name = await one.add_bytes(DATA)
        results: dict[str, bytes] = {}

        async def fetch(key: str, blocks: Blocks, provider: int) -> None:
            results[key] = await blocks.fetch_bytes(name, providers=[id_of(provider)])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fetch, "a", two, 1)
            tasks.start_soon(fetch, "b", two, 1)
            tasks.start_soon(fetch, "c", three, 1)
        assert set(results.values()) == {DATA}
        assert len(results) == 3


async def test_a_cancelled_fetch_keeps_what_it_has(tmp_path):
    async with peers(tmp_path, 2) as (one, two):
        name = await one.add_bytes(DATA)
        with anyio.CancelScope() as scope:

            def stop(done: int, *_: object) -> None:
                if done > 200_000:
                    scope.cancel()

            await two.fetch_bytes(name, providers=[id_of(1)], progress=stop)
        assert scope.cancelled_caught
        assert await two.fetch_bytes(name, providers=[id_of(1)]) == DATA
        assert two.report(name).held >= 200_000
        assert good_bytes(tmp_path, 2)


async def test_empty_bytes_and_files_are_no_special_case(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    async with peers(tmp_path, 2) as (one, two):
        assert await two.fetch_bytes(await one.add_bytes(b""), providers=[id_of(1)]) == b""
        name = await one.add(tmp_path / "empty")
        await two.fetch(name, tmp_path / "out", providers=[id_of(1)])
        assert (tmp_path / "out/empty").read_bytes() == b""


async def test_what_another_process_has_swept_away_is_fetched_again_and_kept(
    tmp_path: Path,
) -> None:
    network = MemoryNetwork()
    async with peer(network, 1, tmp_path) as seeder, peer(network, 2, tmp_path) as taker:
        manifest = await seeder.add_bytes(DATA)
        assert await taker.fetch_bytes(manifest, [id_of(1)]) == DATA
        other = BlockStore(taker._directory)
        assert len(sweep(other, 0).manifests) == 1
        assert await taker.fetch_bytes(manifest, [id_of(1)]) == DATA
        assert sweep(other, None).files == 0  # they are named by a manifest again
        assert await taker.fetch_bytes(manifest) == DATA
