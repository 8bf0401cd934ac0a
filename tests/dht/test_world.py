"""Larger meshes on a virtual clock: what is found under churn, loss and lies, and what it costs.

Few peers here; `python -m bench.dht` runs the same with a thousand and more.
"""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from bench.dht import churn, simulate
from bench.dht_world import World
from lattica.config import DhtConfig
from lattica.dht.keys import dht_key
from lattica.dht.routing import PeerNode
from lattica.dht.service import DhtService
from lattica.virtual_loop import VirtualLoop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


async def test_idle_peers_send_little() -> None:
    """Each keeps its own record alive; the first half hour is for getting to know the others."""
    async with World(seed=3) as world:
        for _ in range(40):
            await world.start()
        await anyio.sleep(1800.0)
        before = sum(peer.traffic.bytes for peer in world.honest)
        await anyio.sleep(1200.0)
        sent = sum(peer.traffic.bytes for peer in world.honest) - before
        assert sent / 1200.0 / 40 < 60.0  # bytes/s


async def test_a_changed_value_takes_copies_and_no_look_up() -> None:
    async with World(seed=4) as world:
        peers = [await world.start() for _ in range(40)]
        key = dht_key("test", "changes")
        await peers[0].dht.put(key, "note", b"0")
        before = peers[0].traffic.calls.copy()
        assert await peers[0].dht.put(key, "note", b"1") == world.config.replicas
        calls = peers[0].traffic.calls - before
        assert calls == {"store": world.config.replicas}
        (found,) = await peers[20].dht.get(key, "note", bytes)
        assert found.value == b"1"


async def test_copies_move_to_those_who_come_closer() -> None:
    """A mesh that grows tenfold: the records' keepers are its closest peers after some time."""
    async with World(seed=5) as world:
        peers = [await world.start() for _ in range(10)]
        key = dht_key("test", "place")
        await peers[0].dht.put(key, "note", b"here")
        for _ in range(90):
            await world.start()
        config = world.config
        await anyio.sleep(2 * (config.place_every + config.republish_every))
        closest = world.closest(key, config.replicas)
        keeping = [
            each
            for each in closest
            if world.peers[each].dht.storage.get(key, "note", now=world.clock.time())
        ]
        assert len(keeping) >= config.replicas - 1


async def test_a_holder_that_is_gone_is_replaced() -> None:
    async with World(seed=6) as world:
        peers = [await world.start() for _ in range(40)]
        key = dht_key("test", "holders")
        await peers[0].dht.put(key, "note", b"kept")
        for each in world.closest(key, world.config.replicas):
            if each != peers[0].id:
                await world.kill(world.peers[each])
        await anyio.sleep(world.config.republish_every + 60.0)
        keeping = [
            peer
            for peer in world.honest
            if peer.dht.storage.get(key, "note", now=world.clock.time())
        ]
        assert len(keeping) >= world.config.replicas


@pytest.mark.slow
def test_a_thousand_peers_find_what_is_there_while_they_come_and_go_lose_packets_and_lie() -> None:
    """Half of them are replaced in an hour; the first minute is half of the test's time."""
    found = simulate(partial(churn, 1000, minutes=3, joined=False))
    assert found.gets >= 60
    assert found.recall >= 0.995
    assert found.closest >= 0.99


async def test_who_finds_no_room_in_a_table_is_not_pinged_and_who_is_silent_makes_room() -> None:
    async with World(seed=24, config=DhtConfig(k=4, maintain_every=3600.0)) as world:
        await world.settle(120)
        one, *others = world.honest
        table = one.dht.table
        caller = next(
            peer
            for peer in others
            if table.full_bucket_of(PeerNode(peer.id)) and table.find(peer.id) is None
        )

        async def call() -> None:
            await caller.client(one.id, DhtService, "dht", 5.0).ping((caller.address,))
            await anyio.sleep(10.0)

        oldest = table.full_bucket_of(PeerNode(caller.id))
        assert oldest is not None
        await call()
        assert one.traffic.calls["ping"] == 1  # the oldest, of which nothing was heard yet
        assert table.find(oldest.peer) is oldest
        await call()
        assert one.traffic.calls["ping"] <= 2  # the next, for the oldest is now the newest
        assert table.find(caller.id) is None
        for _ in range(world.config.k):
            await call()
        assert one.traffic.calls["ping"] <= world.config.k  # each has shown life
        await anyio.sleep(world.config.doubt_after)
        oldest = table.full_bucket_of(PeerNode(caller.id))
        assert oldest is not None
        await world.kill(world.peers[oldest.peer])
        await call()
        await anyio.sleep(20.0)
        assert table.find(oldest.peer) is None
        await call()
        assert table.find(caller.id) is not None


async def test_what_two_halves_said_is_known_to_both_when_they_meet_again() -> None:
    async with World(seed=23, loss=0.02) as world:
        peers = [await world.start() for _ in range(40)]
        before, during = dht_key("test", "before"), dht_key("test", "during")
        await peers[0].dht.put(before, "note", b"0")
        world.sides = {peer.id: number % 2 for number, peer in enumerate(peers)}
        await anyio.sleep(120.0)
        for peer in peers[:2]:  # one on each side
            assert await peer.dht.put(during, "note", peer.id.raw) == world.config.replicas
        for peer in peers[2:4]:
            (found,) = await peer.dht.get(during, "note", bytes)
            assert found.author == peers[peers.index(peer) % 2].id
        world.heal()
        config = world.config
        await anyio.sleep(2 * (config.reunite_every + config.maintain_every))
        for reader in world.random.sample(peers[2:], 10):
            assert len(await reader.dht.get(during, "note", bytes)) == 2
            assert len(await reader.dht.get(before, "note", bytes)) == 1
