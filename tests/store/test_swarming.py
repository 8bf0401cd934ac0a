"""Peers that fetch the same at the same time, and what the wicked among them may say."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from lattica.config import KIB, StoreConfig
from lattica.errors import BadArgumentsError, BlockMissingError, StoreError
from lattica.identity import grants
from lattica.identity.keys import PeerId
from lattica.rpc import Buffer, method
from lattica.store import Blocks
from lattica.store.blocks.filling import Filling
from lattica.store.blocks.manifest import BlockRef, Hash, to_hash
from lattica.store.swarm import keeping
from lattica.store.swarm.asking import MAX_NAMED
from lattica.store.swarm.messages import MAX_TOLD, Given, Have, Want
from lattica.store.swarm.service import MAX_OWED, BlocksService
from lattica.store.swarm.source import Source
from tests.store.mesh import home
from tests.store.test_blocks import CONFIG, DATA, Liar, good_bytes, id_of, peers, serve
from tests.store.test_manifest import noise

pytestmark = pytest.mark.anyio

PATIENT = StoreConfig(block=64 * KIB, block_timeout=60.0)


class Once(BlocksService):
    """Gives each block once, to whoever asks first; none before all three are asking.

    One that asked alone would have all of them, and be gone before the others hear of it.
    """

    given: set[bytes]
    are_here = False

    async def block(self, digest: bytes) -> bytes:
        while not self.are_here:
            self.are_here = self._giving == 3
            await anyio.sleep(0.001)
        self.given = getattr(self, "given", set())
        if digest in self.given:
            raise BlockMissingError("it was given away")
        self.given.add(digest)
        return self._store.read(digest)


async def test_those_who_fetch_the_same_give_to_each_other(tmp_path: Path) -> None:
    async with peers(tmp_path, 4, config=PATIENT) as (one, *others):
        name = await one.add_bytes(DATA)
        serve(one, Once)
        got: list[bytes] = []

        async def fetch(blocks: Blocks) -> None:
            got.append(await blocks.fetch_bytes(name, providers=[id_of(1)]))

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for blocks in others:
                    tasks.start_soon(fetch, blocks)
        assert got == [DATA] * 3
        # They have heard of each other from the one that all of them asked.
        sources = [set(blocks.report(name).provided) for blocks in others]
        assert any(id_of(number) in each for each in sources for number in (2, 3, 4))


async def test_one_who_comes_later_is_served_by_one_who_is_not_done(tmp_path: Path) -> None:
    async with peers(tmp_path, 3, config=PATIENT) as (one, two, three):
        name = await one.add_bytes(DATA)
        gate = anyio.Event()

        class Half(BlocksService):
            given = 0

            async def block(self, digest: bytes) -> bytes:
                self.given += 1
                if self.given > 8:
                    await gate.wait()
                return self._store.read(digest)

        serve(one, Half)
        half = anyio.Event()

        def progress(done: int, *_: object) -> None:
            if done >= 6 * CONFIG.block:
                half.set()

        async with anyio.create_task_group() as tasks:
            fetch = partial(two.fetch_bytes, providers=[id_of(1)], progress=progress)
            tasks.start_soon(fetch, name)
            with anyio.fail_after(10):
                await half.wait()
            with anyio.move_on_after(20):
                tasks.start_soon(partial(three.fetch_bytes, providers=[id_of(2)]), name)
                while two.served < 6 * CONFIG.block:
                    await anyio.sleep(0.01)
            assert two.served >= 6 * CONFIG.block, "from its part"
            gate.set()
        assert await three.fetch_bytes(name) == DATA
        assert good_bytes(tmp_path, 2)


async def test_two_that_fetch_into_one_store_share_what_comes(tmp_path: Path) -> None:
    """Two processes of one machine, each with a store object of its own."""
    home(tmp_path, 2).mkdir()
    home(tmp_path, 3).symlink_to(home(tmp_path, 2))
    config = StoreConfig(block=64 * KIB, block_timeout=1.0)
    async with peers(tmp_path, 3, config=config) as (one, two, three):
        data = noise(5, 64 * config.block)
        name = await one.add_bytes(data)

        class Steady(BlocksService):
            async def block(self, digest: bytes) -> bytes:
                await anyio.sleep(0.02)  # a line's rate
                return self._store.read(digest)

        service = serve(one, Steady)
        fetch = partial(Blocks.path, manifest_id=name, providers=[id_of(1)])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fetch, two)
            tasks.start_soon(fetch, three)
        assert service.served < 1.6 * len(data)
        assert await two.fetch_bytes(name) == await three.fetch_bytes(name) == data
        for blocks in (two, three):
            report = blocks.report(name)
            assert report is not None
            assert report.held + sum(report.provided.values()) == len(data)


async def test_the_last_block_is_asked_of_another_when_the_first_lets_it_wait(
    tmp_path: Path,
) -> None:
    async with peers(tmp_path, 3, config=PATIENT) as (one, two, three):
        name = await one.add_bytes(DATA)
        await two.add_bytes(DATA)

        class Stuck(BlocksService):
            given = 0

            async def block(self, digest: bytes) -> bytes:
                self.given += 1
                if self.given > 3:
                    await anyio.sleep_forever()
                return self._store.read(digest)

        serve(one, Stuck)
        with anyio.fail_after(15):  # far less than a block's deadline
            assert await three.fetch_bytes(name, providers=[id_of(1), id_of(2)]) == DATA


async def test_what_stands_first_comes_first(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    for number, name in enumerate(("a", "b")):
        (source / name).write_bytes(noise(number, 16 * CONFIG.block))
    async with peers(tmp_path, 2, config=CONFIG) as (one, two):
        name = await one.add(source)
        asked: list[bytes] = []

        class Noting(BlocksService):
            async def block(self, digest: bytes) -> bytes:
                asked.append(digest)
                return self._store.read(digest)

        serve(one, Noting)
        tail = ("a", 15 * CONFIG.block, 16 * CONFIG.block)
        await two.path(name, providers=[id_of(1)], first=["b", tail])
        a, b = ([block.hash for block in file.blocks] for file in one._manifests[name].files)
        assert set(asked[:16]) == set(b)
        assert asked[16] == a[15]
        assert set(asked[17:]) == set(a[:15])


async def test_no_block_is_lost_when_a_liar_is_cut_off_while_the_disk_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a block has kept the loop waiting, the others wait for the disk in threads."""
    async with peers(tmp_path, 3, config=PATIENT) as (one, two, three):
        name = await one.add_bytes(DATA)
        await two.add_bytes(DATA)
        gate = threading.Event()
        write = Filling.write
        here, threads = threading.current_thread(), []

        def slowly(filling: Filling, block: BlockRef, data: memoryview) -> None:
            threads.append(threading.current_thread())
            if threads[-1] is not here:
                assert gate.wait(10)
            write(filling, block, data)

        monkeypatch.setattr(Filling, "write", slowly)
        monkeypatch.setattr(keeping, "SLOW", 0.0)
        serve(one, Liar)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:

                async def fetch() -> None:
                    both = [id_of(1), id_of(2)]
                    assert await three.fetch_bytes(name, providers=both) == DATA

                tasks.start_soon(fetch)
                while here not in threads or threads[-1] is here:
                    await anyio.sleep(0.01)
                gate.set()
        assert threads.count(here) == 1


class Pausing(BlocksService):
    """Gives the second half once the disk has been told to write the first."""

    count = 0
    told: threading.Event

    async def block(self, digest: bytes) -> bytes:
        self.count += 1
        while self.count > 8 and not self.told.is_set():
            await anyio.sleep(0.001)
        return await super().block(digest)


async def test_the_disk_writes_while_more_comes_and_is_heard_when_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with peers(tmp_path, 2, config=CONFIG) as (one, two):
        name = await one.add_bytes(DATA)
        pausing = serve(one, Pausing)
        pausing.told = threading.Event()
        sync = os.fdatasync

        def fail(descriptor: int) -> None:
            pausing.told.set()
            raise OSError(errno.EIO, "the disk is broken")

        def write(descriptor: int) -> None:
            pausing.told.set()
            sync(descriptor)

        monkeypatch.setattr(keeping, "SYNC_EVERY", 128 * KIB)
        monkeypatch.setattr(os, "fdatasync", fail)
        with pytest.raises(StoreError, match="the disk is broken"):
            await two.fetch_bytes(name, providers=[id_of(1)])
        assert not two.has(name)
        monkeypatch.setattr(os, "fdatasync", write)
        pausing.count = 0
        pausing.told.clear()
        await two.remove(name)
        with anyio.fail_after(10):
            assert await two.fetch_bytes(name, providers=[id_of(1)]) == DATA
        assert pausing.told.is_set()


class Boaster(BlocksService):
    """Says what cannot be."""

    said: Have

    @method(scope=grants.CALL)
    async def have(self, digest: Hash) -> AsyncIterator[Have]:
        yield self.said
        await anyio.sleep_forever()


@pytest.mark.parametrize(
    "said",
    [
        Have(b"\xff" * 3, (), (), (), True),  # more blocks than there are
        Have(b"", (4_000_000_000,), (), (), False),
        Have(b"", (), (4_000_000_000,), (), False),
        Have(b"", (), (), tuple(id_of(number) for number in range(10, 40)), False),  # nobody's
    ],
)
async def test_a_peer_that_says_nonsense_does_no_harm(tmp_path: Path, said: Have) -> None:
    config = StoreConfig(block=64 * KIB, block_timeout=1.0)
    async with peers(tmp_path, 3, config=config) as (one, two, three):
        name = await one.add_bytes(DATA)
        await two.add_bytes(DATA)
        serve(one, Boaster).said = said
        with anyio.fail_after(20):
            both = [id_of(1), id_of(2)]
            assert await three.fetch_bytes(name, providers=both) == DATA
            await three.remove(name)
            with pytest.raises(BlockMissingError, match=id_of(1).short):
                await three.fetch_bytes(name, providers=[id_of(1)])


class Pusher(BlocksService):
    """Gives what nobody has asked for, without end."""

    given = 0

    @method(scope=grants.CALL)
    async def give(self, digest: Hash, wants: AsyncIterator[Want]) -> AsyncIterator[Given]:
        async for want in wants:
            for number in itertools.cycle(set(range(15)) - set(want.blocks)):
                self.given += 1
                yield Given(number, Buffer(DATA[: 64 * KIB]))


async def test_a_peer_that_gives_what_it_was_not_asked_for_is_left(tmp_path: Path) -> None:
    async with peers(tmp_path, 3, config=CONFIG) as (one, two, three):
        name = await one.add_bytes(DATA)
        await two.add_bytes(DATA)
        pusher = serve(one, Pusher)
        with anyio.fail_after(20):
            with pytest.raises(BlockMissingError, match="not asked for"):
                await three.fetch_bytes(name, providers=[id_of(1)])
            assert await three.fetch_bytes(name, providers=[id_of(1), id_of(2)]) == DATA
        assert pusher.given < 100
        assert three.report(name).provided == {id_of(2): len(DATA)}  # type: ignore[union-attr]


class Namer(BlocksService):
    """Names peers that are nobody, without end."""

    named = 0

    @method(scope=grants.CALL)
    async def have(self, digest: Hash) -> AsyncIterator[Have]:
        while True:
            made = tuple(PeerId(secrets.token_bytes(32)) for _ in range(MAX_TOLD))
            self.named += len(made)
            yield Have(b"", (), (), made, False)


async def test_a_peer_that_invents_others_is_heard_only_so_far(tmp_path: Path) -> None:
    config = StoreConfig(block=64 * KIB, block_timeout=1.0)
    async with peers(tmp_path, 2, config=config) as (one, two):
        name = await one.add_bytes(DATA)
        namer = serve(one, Namer)
        tried: set[PeerId] = set()
        reach = Source.reach

        async def note(source: Source, peer: PeerId) -> None:
            tried.add(peer)
            await reach(source, peer)

        with pytest.MonkeyPatch.context() as patch, anyio.fail_after(30):
            patch.setattr(Source, "reach", note)
            with pytest.raises(BlockMissingError):
                await two.fetch_bytes(name, providers=[id_of(1)])
        assert namer.named > 2 * MAX_NAMED
        assert len(tried) <= 3 * MAX_NAMED, "in each of the rounds that a stalled peer gets"


@pytest.mark.parametrize(
    "wants",
    [
        [Want((4_000_000_000,), ())],
        [Want(tuple(range(start, start + 64)), ()) for start in range(0, MAX_OWED + 64, 64)],
    ],
)
async def test_who_wants_too_much_is_refused(tmp_path: Path, wants: list[Want]) -> None:
    small = StoreConfig(block=KIB)
    async with peers(tmp_path, 2, config=small) as (one, two):
        name = await one.add_bytes(noise(1, 1000 * KIB))
        stream = two._bringing.client(id_of(1), 5.0).give(to_hash(name), aiter_of(wants))
        with pytest.raises(BadArgumentsError), anyio.fail_after(10):
            async for _ in stream:
                pass
        assert one._service._giving == 0


async def aiter_of(wants: list[Want]) -> AsyncIterator[Want]:
    for want in wants:
        yield want
    await anyio.sleep_forever()


async def test_a_conversation_that_is_left_costs_nothing_any_more(tmp_path: Path) -> None:
    async with peers(tmp_path, 2) as (one, two):
        name = await one.add_bytes(DATA)
        stub = two._bringing.client(id_of(1), 5.0)
        seen: list[Given] = []
        async for given in stub.give(to_hash(name), aiter_of([Want((0, 1, 2), ())])):
            seen.append(given)
            if len(seen) == 2:
                break
        assert [given.block for given in seen] == [0, 1]
        async for have in stub.have(to_hash(name)):
            assert have.is_final
            break
        with anyio.fail_after(5):
            while one._service._giving or one._sharing._shares:
                await anyio.sleep(0.01)
        assert home(tmp_path, 1).exists()
