"""Documents become equal by gossip alone, and by exchanges alone, whatever the timing."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

import anyio
import pytest

from lattica.config import StoreConfig
from lattica.store import Documents
from lattica.store.conversation import Conversation
from lattica.store.messages import Envelopes, Exchange, Head, Heads
from lattica.store.replica import Batch
from tests.store.mesh import identity, until_equal
from tests.store.test_documents import SLOW, id_of, link, mesh

pytestmark = pytest.mark.anyio

SHAPES = {
    "line": [(1, 2), (2, 3), (3, 4), (4, 5)],
    "ring": [(1, 2), (2, 3), (3, 4), (4, 1)],
    "star": [(1, 2), (1, 3), (1, 4)],
}


def slow_disk(documents: Documents, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits take between nothing and 20 ms."""
    append, chance = documents._database.append, random.Random(seed)

    def delayed(*args: object) -> None:
        time.sleep(chance.choice((0.0, 0.0, 0.005, 0.02)))
        append(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(documents._database, "append", delayed)


async def scramble(
    base: Path, seed: int, shape: str, config: StoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers link, open and write in an order that `seed` decides; all must agree in the end."""
    pairs = SHAPES[shape]
    count = max(map(max, pairs))
    chance = random.Random(seed)
    async with mesh(base, count, config=config) as (_, peers):

        async def linked(one: int, other: int) -> None:
            await anyio.sleep(chance.random() * 0.02)
            await link(peers[one - 1], other)

        async def writes(number: int) -> None:
            await anyio.sleep(chance.random() * 0.02)
            document = await peers[number - 1].open("roster")
            for turn in range(5):
                document.map("m")[f"key {chance.randrange(6)}"] = [number, turn]
                if chance.random() < 0.5:
                    await anyio.sleep(chance.random() * 0.01)

        for number, documents in enumerate(peers):
            slow_disk(documents, seed * 10 + number, monkeypatch)
        async with anyio.create_task_group() as tasks:
            for pair in pairs:
                tasks.start_soon(linked, *pair)
            for number in range(1, count + 1):
                tasks.start_soon(writes, number)
        copies = [documents.opened["roster"] for documents in peers]
        await until_equal(*copies)
        assert all(set(c.heads().values()) == {5} and len(c.heads()) == count for c in copies)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
async def test_gossip_alone_makes_all_peers_equal(tmp_path, monkeypatch, seed, shape):
    await scramble(tmp_path, seed, shape, SLOW, monkeypatch)


@pytest.mark.parametrize("shape", SHAPES)
async def test_exchanges_alone_make_all_peers_equal(tmp_path, monkeypatch, shape):
    async def no_push(self: Conversation, document: str) -> None:
        pass

    monkeypatch.setattr(Conversation, "_push", no_push)
    await scramble(tmp_path, 1, shape, StoreConfig(sync_every=0.05), monkeypatch)


async def test_a_change_while_the_watchers_start_is_not_missed(tmp_path):
    async with mesh(tmp_path, 2) as (_, (one, two)):
        here, there = await one.open("roster"), await two.open("roster")
        here.map("m")["k"] = 1
        # Runs after the first comparison and before any task that it starts.
        asyncio.get_running_loop().call_soon(there.map("m").set, "k", 1)
        await until_equal(here, there, within=2.0)
