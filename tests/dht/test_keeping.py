"""What peers keep for others survives: hand-over, restarts; and who waits is told of changes."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from bench.dht_world import SimPeer, World
from lattica.config import DhtConfig
from lattica.dht.keys import dht_key
from lattica.dht.record_file import NAME, RecordFile
from lattica.errors import DhtError, RecordError
from lattica.identity import wire
from lattica.rpc.buffers import Buffer
from lattica.virtual_loop import VirtualLoop
from tests.dht.support import KEY as KEY_OF_ENVELOPES
from tests.dht.support import NOW, envelope, identity, storage

pytestmark = pytest.mark.anyio
KEY = dht_key("test", "kept")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def keepers(world: World, key: bytes) -> set[SimPeer]:
    now = world.clock.time()
    return {peer for peer in world.honest if peer.dht.storage.get(key, "note", now=now)}


# ------------------------------------------------------------------ handing over


async def test_all_keepers_leave_and_nothing_is_lost() -> None:
    """The author is gone without a word, so nobody else would say it again."""
    async with World(seed=7) as world:
        author, *_ = [await world.start() for _ in range(40)]
        key = next(
            each
            for each in (dht_key("test", str(number)) for number in range(99))
            if author.id not in world.closest(each, 2 * world.config.replicas)
        )
        await author.dht.put(key, "note", b"kept")
        await world.kill(author)
        first = keepers(world, key)
        for peer in first:
            await world.leave(peer)
            await anyio.sleep(5.0)
        assert len(keepers(world, key)) >= world.config.replicas / 2
        reader = next(iter(world.honest))
        (found,) = await reader.dht.get(key, "note", bytes)
        assert (found.author, found.value) == (author.id, b"kept")


async def test_what_a_dead_author_said_outlives_all_who_first_kept_it() -> None:
    """They die one by one, and peers that never met the author come."""
    async with World(seed=20) as world:
        author, *_ = [await world.start() for _ in range(24)]
        await author.dht.put(KEY, "note", b"kept", ttl=1500.0)
        first = keepers(world, KEY)
        await world.kill(author)
        for peer in first:
            if peer is not author:
                await anyio.sleep(170.0)
                await world.kill(peer)
                await world.start()
        assert not keepers(world, KEY) & first
        assert len(keepers(world, KEY)) >= world.config.replicas / 2
        (found,) = await world.honest[0].dht.get(KEY, "note", bytes)
        assert (found.author, found.value) == (author.id, b"kept")


async def test_only_what_is_not_renewed_is_given_on_and_each_peer_gets_it_once() -> None:
    async with World(seed=21) as world:
        author, *_ = [await world.start() for _ in range(24)]
        await author.dht.put(KEY, "note", b"kept")

        def given() -> list[int]:
            """To how many each keeper has given what the author said."""
            return [
                len(peers)
                for keeper in world.honest
                for envelope, peers in keeper.dht._handing_over._given.items()
                if envelope.author == author.id and KEY in envelope.payload
            ]

        await anyio.sleep(400.0)
        assert not given()
        await world.kill(author)
        await anyio.sleep(500.0)
        assert 0 < sum(given()) <= world.config.replicas * (world.config.replicas + 2)
        before = sum(peer.traffic.calls["hand_over"] for peer in world.honest)
        assert before < 24 * 24  # other records of the author are orphans too, and as few
        await anyio.sleep(300.0)
        assert not given()  # its time is over


async def test_a_record_that_nobody_took_is_forgotten_with_its_place() -> None:
    async with World(seed=22) as world:
        one, other = [await world.start() for _ in range(2)]
        one.dht.register_kind("odd", bytes)  # which the other does not know
        with pytest.raises(DhtError):
            await one.dht.put(KEY, "odd", b"x")
        assert KEY not in one.dht._publisher._places
        assert other.dht.counters["refused:invalid"] == 1


async def test_what_was_taken_back_does_not_come_again_by_a_hand_over() -> None:
    async with World(seed=8) as world:
        author, rogue, reader, *_ = [await world.start() for _ in range(30)]
        await author.dht.put(KEY, "note", b"once")
        (old,) = [
            kept.envelope for kept in author.dht.storage.get(KEY, "note", now=world.clock.time())
        ]
        await author.dht.remove(KEY, "note")
        for peer in world.honest:
            if peer is not rogue:
                stub = rogue.client(peer.id, None, "dht", 5.0)  # type: ignore[arg-type]
                await stub.hand_over(Buffer(wire.encode((old,))), (rogue.address,))
        assert await reader.dht.get(KEY, "note", bytes) == []


def test_a_sponsor_pays_for_haste_and_may_not_fill_a_peer() -> None:
    config = DhtConfig(max_sponsored=3, store_burst=5, stores_per_second=0.0001)
    kept = storage(config)
    sponsor = identity(99).peer_id
    for number in range(3):
        kept.store(envelope(number), now=NOW, sponsor=sponsor)
    with pytest.raises(RecordError, match="handed over too much"):
        kept.store(envelope(3), now=NOW, sponsor=sponsor)
    with pytest.raises(RecordError, match="handed over too much"):
        kept.store(envelope(4), now=NOW, sponsor=sponsor)
    with pytest.raises(RecordError, match="too fast"):
        kept.store(envelope(5), now=NOW, sponsor=sponsor)
    kept.store(envelope(3), now=NOW)  # its author is still free to say it
    kept.expire(now=NOW + 61.0)
    assert len(kept) == 0


async def test_a_parcel_that_is_none_is_refused_and_counted() -> None:
    async with World(seed=9) as world:
        one, other = [await world.start() for _ in range(2)]
        stub = one.client(other.id, None, "dht", 5.0)  # type: ignore[arg-type]
        for parcel in (b"\xff", bytes(world.config.max_transfer + 1)):
            with pytest.raises(RecordError):
                await stub.hand_over(Buffer(parcel), ())
        assert other.dht.counters["refused:transfer"] == 2


# ------------------------------------------------------------------- restarting


async def test_a_peer_that_starts_again_still_keeps_what_it_kept(tmp_path: Path) -> None:
    async with World(seed=10) as world:
        author = await world.start()
        keeper = await world.start(directory=tmp_path)
        await author.dht.put(KEY, "note", b"kept")
        await author.dht.put(dht_key("test", "short"), "note", b"kept", ttl=20.0)
        await world.kill(keeper)
        await keeper.stopped.wait()
        await world.kill(author)
        await anyio.sleep(60.0)
        again = await world.start(directory=tmp_path, identity=keeper.identity)
        (found,) = await again.dht.get(KEY, "note", bytes)
        assert found.value == b"kept"
        assert await again.dht.get(dht_key("test", "short"), "note", bytes) == []


@pytest.mark.parametrize("damage", [b"", b"\xff" * 50, b"\x91"])
def test_a_damaged_file_is_no_error(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / NAME).write_bytes(damage)
    assert RecordFile(tmp_path).load() == ()


async def test_who_pays_for_what_was_handed_over_is_known_after_a_restart(tmp_path: Path) -> None:
    config = DhtConfig(maintain_every=20.0, max_sponsored_per_key=2)
    async with World(seed=14, config=config) as world:
        keeper = await world.start(directory=tmp_path)
        sponsor = await world.start()

        async def hand_over(*authors: int) -> int:
            records = tuple(
                envelope(each, value=b"x", expires=world.clock.time() + 600.0) for each in authors
            )
            stub = sponsor.client(keeper.id, None, "dht", 5.0)  # type: ignore[arg-type]
            kept: int = await stub.hand_over(Buffer(wire.encode(records)), (sponsor.address,))
            return kept

        assert await hand_over(1, 2, 3) == 2
        await world.kill(keeper)
        await keeper.stopped.wait()
        keeper = await world.start(directory=tmp_path, identity=keeper.identity)
        assert len(keepers(world, KEY_OF_ENVELOPES)) == 1
        assert await hand_over(4) == 0


async def test_records_are_saved_while_the_peer_runs(tmp_path: Path) -> None:
    """So that a crash takes no more than a minute's worth of them."""
    async with World(seed=15) as world:
        await world.start(directory=tmp_path)
        author = await world.start()
        await author.dht.put(KEY, "note", b"kept")
        await anyio.sleep(2 * world.config.save_every)
        assert author.id in {line.envelope.author for line in RecordFile(tmp_path).load()}


def test_an_older_state_does_not_replace_a_newer_one(tmp_path: Path) -> None:
    file, now, kept = RecordFile(tmp_path), NOW, storage()
    kept.store(envelope(1), now=now)
    file.save(list(kept), 2)
    file.save([], 1)  # by a thread that was slow to start
    assert len(file.load()) == 1


# --------------------------------------------------------------------- watching


async def test_a_change_is_told_long_before_anybody_would_look() -> None:
    async with World(seed=11) as world:
        author, watcher, *_ = [await world.start() for _ in range(40)]
        await author.dht.put(KEY, "note", b"first")
        seen: list[tuple[float, list[bytes]]] = []

        async def watch() -> None:
            async for found in watcher.dht.watch(KEY, "note", bytes):
                values = [each.value for each in found]
                seen.append((anyio.current_time(), values))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await anyio.sleep(20.0)
            assert [values for _, values in seen] == [[b"first"]]
            before = watcher.traffic.bytes
            await anyio.sleep(60.0)
            assert (watcher.traffic.bytes - before) / 60.0 < 3000.0  # bytes/s: a look now and then
            said = anyio.current_time()
            await author.dht.put(KEY, "note", b"second")
            await anyio.sleep(3.0)
            assert [values for _, values in seen] == [[b"first"], [b"second"]]
            assert seen[-1][0] - said < 2.0
            await author.dht.remove(KEY, "note")
            await anyio.sleep(3.0)
            assert seen[-1][1] == []
            tasks.cancel_scope.cancel()
        await anyio.sleep(1.0)
        waiting = sum(len(peer.dht.watchers) for peer in world.honest)
        assert waiting <= 2 * world.config.watches  # questions whose asker has gone end by time


async def test_one_peer_cannot_have_everybody_wait() -> None:
    async with World(seed=12, config=DhtConfig(watches_per_peer=64)) as world:
        one, other = [await world.start() for _ in range(2)]
        stub = one.client(other.id, None, "dht", 60.0)  # type: ignore[arg-type]
        empty = await stub.watch(KEY, "note", b"")
        refused = 0

        async def wait(number: int) -> None:
            nonlocal refused
            try:
                await stub.watch(dht_key("test", str(number)), "note", empty)
            except Exception:
                refused += 1

        async with anyio.create_task_group() as tasks:
            for number in range(world.config.watches_per_peer + 10):
                tasks.start_soon(wait, number)
        assert refused == 10
        assert len(other.dht.watchers) == 0
        assert not other.dht.watchers._events


def test_what_is_handed_over_keeps_out_nothing_that_authors_say() -> None:
    config = DhtConfig(max_sponsored_bytes=2000, max_sponsored_per_key=2, store_burst=64)
    kept = storage(config)
    for number in range(2):
        kept.store(envelope(number, sequence=9), now=NOW, sponsor=identity(90).peer_id)
    with pytest.raises(RecordError, match="handed over too much"):
        kept.store(envelope(2), now=NOW, sponsor=identity(91).peer_id)  # of this key
    other = dht_key("test", "other")
    refused = 0
    for number in range(64):
        elsewhere = envelope(number, key=dht_key("test", str(number)))
        try:
            kept.store(elsewhere, now=NOW, sponsor=identity(92).peer_id)
        except RecordError:
            refused += 1
    assert 0 < refused < 64  # all together they have 2,000 bytes
    kept.store(envelope(3, key=other), now=NOW)
    kept.store(envelope(3, sequence=1), now=NOW)
    first, *_ = kept.get(KEY_OF_ENVELOPES, "note", now=NOW)
    assert first.envelope.author == identity(3).peer_id  # what its author stored comes first


def test_a_sequence_ahead_of_time_is_refused() -> None:
    kept = storage()
    ahead = int((NOW + 3600.0) * 1e6)
    with pytest.raises(RecordError, match="ahead of time"):
        kept.store(envelope(1, sequence=ahead), now=NOW)
    kept.store(envelope(1, sequence=int(NOW * 1e6)), now=NOW)


async def test_what_was_said_for_long_and_then_for_short_stays_taken_back() -> None:
    async with World(seed=13) as world:
        author, rogue, reader, *_ = [await world.start() for _ in range(30)]
        await author.dht.put(KEY, "note", b"once", ttl=3600.0)
        now = world.clock.time()
        (old,) = [kept.envelope for kept in author.dht.storage.get(KEY, "note", now=now)]
        await author.dht.put(KEY, "note", b"once", ttl=60.0)
        await author.dht.remove(KEY, "note")
        await anyio.sleep(200.0)
        for peer in world.honest:
            if peer is not rogue:
                stub = rogue.client(peer.id, None, "dht", 5.0)  # type: ignore[arg-type]
                await stub.hand_over(Buffer(wire.encode((old,))), (rogue.address,))
        assert await reader.dht.get(KEY, "note", bytes) == []
