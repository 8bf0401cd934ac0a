"""Documents become equal by gossip alone, and by exchanges alone, whatever the timing."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from pathlib import Path
from typing import cast

import anyio
import pytest

from lattica.config import StoreConfig
from lattica.identity.keys import PeerId
from lattica.store import Document, Documents
from lattica.store.chains.messages import Envelopes, Exchange, Heads, Marks, Notices, Others
from lattica.store.chains.sending import Batch
from lattica.store.crdt.values import encode_value
from lattica.store.documents.conversation import Conversation
from lattica.store.documents.service import DocumentsService
from tests.store.mesh import replica, until_equal, write
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


async def until_all_in(copies: list[Document], updates: int) -> None:
    """Wait for every update: contents may be equal before the last overwritten one is in."""
    with anyio.fail_after(10):
        for copy in copies:
            changes = copy.watch()
            while sum(copy.heads().values()) < updates:
                await anext(changes)


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
        await until_all_in(copies, 5 * count)
        assert len({copy.digest() for copy in copies}) == 1


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


class LateAnswer:
    """A peer that opens the document, and asks, while its "not open" is on the way."""

    def __init__(self) -> None:
        self.conversation: Conversation
        self.pushed = anyio.Event()

    async def exchange(self, document: str, heads: Heads, marks: Marks) -> Exchange | None:
        self.conversation.learned(document, ())
        return None

    async def push(
        self, document: str, envelopes: Envelopes, notices: Notices, also: Others
    ) -> bool:
        self.pushed.set()
        return True


class OneUpdate:
    """A copy with one update to give."""

    def __init__(self) -> None:
        self.replica = replica(1)
        write(self.replica, "k", encode_value(1))

    def heads(self) -> Heads:
        return self.replica.heads()

    def marks(self) -> Marks:
        return ()

    def lacking(self, theirs: Marks) -> Notices:
        return ()

    async def learn(self, notices: Notices) -> None:
        pass

    async def missing(self, theirs: Heads) -> Batch:
        batch = self.replica.missing(theirs, limit=1000)
        assert batch is not None
        return batch

    async def receive(self, source: PeerId, envelopes: Envelopes) -> bool:
        return True


async def test_a_peer_that_opened_while_it_answered_is_still_pushed_to():
    stub = LateAnswer()
    conversation = stub.conversation = Conversation(
        id_of(2),
        cast(DocumentsService, stub),
        {"roster": OneUpdate()},
        every=3600.0,
        counters=Counter(),
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(conversation.run)
        with anyio.fail_after(2):
            await stub.pushed.wait()
        assert conversation.has_open("roster")
        tasks.cancel_scope.cancel()


async def test_what_its_author_sends_to_all_is_not_sent_round_again(tmp_path, monkeypatch):
    pushed: list[int] = []
    async with mesh(tmp_path, 4) as (_, peers):
        for one, other in itertools.combinations(range(1, 5), 2):
            await link(peers[one - 1], other)
        copies = [await documents.open("roster") for documents in peers]
        for copy in copies:
            await copy.synced()
        for documents in peers:
            monkeypatch.setattr(documents, "pushed", counted(documents.pushed, pushed))
        for number in range(5):
            copies[0].map("m")["k"] = number
            await until_all_in(copies, number + 1)
            for copy in copies:
                await copy.flush()
        await copies[1].synced()
        assert sum(pushed) == 5 * 3


def counted(push, pushed):
    async def pushing(peer, name, envelopes, notices, also):
        pushed.append(len(envelopes))
        return await push(peer, name, envelopes, notices, also)

    return pushing
