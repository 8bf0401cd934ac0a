"""Peers that come back with less than they had, and exchanges that fail at first."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import cast

import anyio
import pytest

from lattica.errors import DocumentError, RpcError
from lattica.link.memory import MemoryNetwork
from lattica.store.chains.messages import Exchange, Heads, Marks
from lattica.store.chains.notices import rule
from lattica.store.crdt.values import encode_value
from lattica.store.documents.conversation import Conversation
from lattica.store.documents.service import DocumentsService
from lattica.virtual_loop import VirtualLoop
from tests.store.mesh import authority, home, replica, until_equal, write
from tests.store.test_documents import QUICK, SLOW, id_of, link, mesh, peer
from tests.store.test_gossip import OneUpdate

pytestmark = pytest.mark.anyio


async def written(network: MemoryNetwork, base: Path, number: int, upto: int, *, to: int) -> None:
    """Let a peer write until there are so many updates of it, and another have them."""
    async with peer(network, number, base) as one:
        await link(one, to)
        document = await one.open("roster")
        while (count := document.heads().get(id_of(number), 0)) < upto:
            document.map("m")[str(count)] = count
        await document.flush()
        await document.synced()


async def test_who_has_an_old_backup_back_and_writes_at_once_does_not_fork(tmp_path, monkeypatch):
    network = MemoryNetwork()
    async with (
        peer(network, 1, tmp_path, config=QUICK, with_dht=True),
        peer(network, 2, tmp_path, config=QUICK, with_dht=True) as two,
    ):
        there = await two.open("roster")
        await written(network, tmp_path, 3, 3, to=2)
        shutil.copytree(home(tmp_path, 3), home(tmp_path / "backup", 3))
        await written(network, tmp_path, 3, 9, to=2)
        assert there.heads() == {id_of(3): 9}
        # It has no link to who has the document when it opens it, and finds that peer.
        async with peer(network, 3, tmp_path / "backup", config=QUICK, with_dht=True) as three:
            network.partition(id_of(2), id_of(3))
            while id_of(2) in three._conversations:
                await anyio.lowlevel.checkpoint()
            link_up = three._link_up

            async def healed(*args):
                network.heal(id_of(2), id_of(3))
                await link_up(*args)

            monkeypatch.setattr(three, "_link_up", healed)
            here = await three.open("roster")
            here.map("m")["next"] = 1
            await until_equal(here, there)
            assert there.heads() == here.heads() == {id_of(3): 10}
            assert len(there.map("m")) == 10
            assert not two.counters["forked"]


async def test_an_exchange_that_fails_once_is_waited_for_at_opening(tmp_path, monkeypatch):
    network = MemoryNetwork()
    async with peer(network, 2, tmp_path) as two:
        there = await two.open("roster")
        await written(network, tmp_path, 1, 2, to=2)
        shutil.copytree(home(tmp_path, 1), home(tmp_path / "backup", 1))
        await written(network, tmp_path, 1, 4, to=2)
        exchanged, failed = two.exchanged, []

        async def fails_once(*args):
            if not failed:
                failed.append(args)
                raise DocumentError("not now")
            return await exchanged(*args)

        monkeypatch.setattr(two, "exchanged", fails_once)
        async with peer(network, 1, tmp_path / "backup") as one:
            await link(one, 2)
            here = await one.open("roster")
            assert failed
            here.map("m")["next"] = 1
            await until_equal(here, there)
            assert there.heads() == {id_of(1): 5}


async def test_opening_waits_no_longer_than_it_may(tmp_path, monkeypatch):
    async with mesh(tmp_path, 2, config=QUICK) as (_, (one, two)):

        async def hangs(*_args):
            await anyio.sleep_forever()

        monkeypatch.setattr(two, "exchanged", hangs)
        await link(one, 2)
        with anyio.fail_after(QUICK.open_timeout + 1.0):
            (await one.open("roster")).map("m")["k"] = 1


class Failing:
    """A peer that does not answer so many times."""

    def __init__(self, failures: int) -> None:
        self.left = failures
        self.asked: list[float] = []

    async def exchange(self, document: str, heads: Heads, marks: Marks) -> Exchange | None:
        self.asked.append(anyio.current_time())
        if self.left:
            self.left -= 1
            raise RpcError("gone")
        return None


def test_a_failed_exchange_is_tried_again_soon_and_then_less_and_less():
    every, stub, counters = 5.0, Failing(9), Counter[str]()

    async def main() -> None:
        conversation = Conversation(
            id_of(2),
            cast(DocumentsService, stub),
            {"roster": OneUpdate()},
            every=every,
            counters=counters,
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(conversation.run)
            await conversation.settled()  # it has failed twice, and is waited for no more
            assert stub.left == 7
            while stub.left:
                await anyio.sleep(0.1)
            await conversation.settled()
            tasks.cancel_scope.cancel()

    anyio.run(main, backend_options={"loop_factory": VirtualLoop})
    pauses = [later - before for before, later in zip(stub.asked, stub.asked[1:], strict=False)]
    assert pauses[0] <= 0.25
    assert sum(pauses[:3]) < 2.0
    assert all(pause <= every * 1.2 for pause in pauses)
    assert min(pauses[5:]) >= every * 0.8
    assert counters["failed:RpcError"] == 9


async def test_who_learns_that_an_author_is_cut_asks_again_for_what_it_refused(tmp_path):
    async with mesh(tmp_path, 2, config=SLOW) as (_, (one, two)):
        here, there = await one.open("roster"), await two.open("roster")
        await link(one, 2)
        await here.synced()
        await there.synced()
        asked = anyio.Event()
        exchanged = one.exchanged

        async def counted(*args):
            asked.set()
            return await exchanged(*args)

        one.exchanged = counted
        stranger = replica(4)
        first = write(stranger, "k", encode_value(1))
        notice = rule(authority, "roster", id_of(4), upto=0)
        await two.pushed(id_of(9), "roster", (first,), (notice,), ())
        with anyio.fail_after(2):
            await asked.wait()
