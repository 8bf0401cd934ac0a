"""Larger meshes on a virtual clock: what is found under churn, loss and lies, and what it costs.

Few peers here; `python -m bench.dht` runs the same with a thousand and more.
"""

from __future__ import annotations

import anyio
import pytest

from bench.dht_world import World
from lattica.dht.keys import dht_key
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
