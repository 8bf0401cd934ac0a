"""Documents of peers that are linked: convergence, gossip, disk, refusals."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from lattica.clock import ManualClock
from lattica.config import StoreConfig
from lattica.dht import Dht
from lattica.errors import DocumentError, GrantError, StoreError
from lattica.identity import grants
from lattica.identity.keys import Identity, PeerId
from lattica.identity.tickets import Contact
from lattica.link.memory import MemoryLinks, MemoryNetwork
from lattica.rpc import Rpc
from lattica.store import Documents
from lattica.store.chains.messages import SERVICE
from lattica.store.crdt.values import encode_value
from lattica.store.documents.service import DocumentsService
from tests.store.mesh import (
    NOW,
    home,
    identity,
    membership,
    replica,
    seal,
    until_equal,
    write,
)

pytestmark = pytest.mark.anyio

SLOW = StoreConfig(sync_every=3600.0)  # only gossip and new links move updates
QUICK = StoreConfig(sync_every=0.05, open_timeout=1.0)


@contextlib.asynccontextmanager
async def peer(
    network: MemoryNetwork,
    number: int,
    base: Path,
    *scopes: str,
    config: StoreConfig = SLOW,
    with_dht: bool = False,
    authority_key: Identity | None = None,
) -> AsyncIterator[Documents]:
    clock = ManualClock(NOW)
    key = identity(number)
    shown = membership(key, *scopes)
    links = MemoryLinks(network, key, shown, clock=clock)
    async with contextlib.AsyncExitStack() as stack:
        rpc = await stack.enter_async_context(Rpc(links))
        dht = None
        if with_dht:
            dht = await stack.enter_async_context(
                Dht(rpc, key, clock=clock, addresses=lambda: (f"memory:{number}",))
            )
        documents = await stack.enter_async_context(
            Documents(
                rpc, dht, key, shown, home(base, number), config, clock, authority=authority_key
            )
        )
        if dht is not None and number > 1:
            await dht.bootstrap([Contact(id_of(1), ("memory:1",))])
        yield documents
        links.leave()


@contextlib.asynccontextmanager
async def mesh(
    base: Path, count: int, *, config: StoreConfig = SLOW
) -> AsyncIterator[tuple[MemoryNetwork, list[Documents]]]:
    network = MemoryNetwork()
    async with contextlib.AsyncExitStack() as stack:
        yield (
            network,
            [
                await stack.enter_async_context(peer(network, number, base, config=config))
                for number in range(1, count + 1)
            ],
        )


def id_of(number: int) -> PeerId:
    return identity(number).peer_id


async def link(one: Documents, number: int) -> None:
    await one._rpc.links.connect(id_of(number))


async def test_what_one_peer_writes_the_other_reads(tmp_path):
    async with mesh(tmp_path, 2) as (_, (one, two)):
        await link(one, 2)
        here, there = await one.open("roster"), await two.open("roster")
        value = {"layers": [0, 7], "name": "café", "rate": 1.5, "raw": b"\x00", "none": None}
        here.map("serving").set("stage", value)
        await until_equal(here, there)
        assert there.to_dict() == {"serving": {"stage": value}}
        assert there.heads() == {id_of(1): 1}


async def test_an_open_document_has_what_linked_peers_have(tmp_path):
    async with mesh(tmp_path, 2) as (_, (one, two)):
        await link(one, 2)
        here = await one.open("roster")
        here.map("m").update(a=1, b=2)
        await here.flush()
        assert (await two.open("roster")).to_dict() == {"m": {"a": 1, "b": 2}}


async def test_a_new_link_brings_both_ends_up_to_date(tmp_path):
    async with mesh(tmp_path, 2) as (_, (one, two)):
        here, there = await one.open("roster"), await two.open("roster")
        here.map("m")["one"] = 1
        there.map("m")["two"] = 2
        await here.flush()
        await link(one, 2)
        await until_equal(here, there)
        assert here.to_dict() == {"m": {"one": 1, "two": 2}}


async def test_gossip_crosses_a_line_of_peers(tmp_path):
    async with mesh(tmp_path, 5) as (_, peers):
        for number, documents in enumerate(peers[:-1], 1):
            await link(documents, number + 1)
        copies = [await documents.open("roster") for documents in peers]
        for number, document in enumerate(copies):
            document.map("m")[f"peer {number}"] = number
        await until_equal(*copies)
        assert len(copies[0].map("m")) == 5


async def test_partitioned_peers_agree_after_the_partition(tmp_path):
    async with mesh(tmp_path, 3, config=QUICK) as (network, peers):
        await link(peers[0], 2)
        await link(peers[1], 3)
        copies = [await documents.open("roster") for documents in peers]
        network.partition(id_of(1), id_of(2))
        for number, document in enumerate(copies):
            document.map("m")["same"] = number
        await until_equal(copies[1], copies[2])
        assert copies[0].digest() != copies[1].digest()
        network.heal(id_of(1), id_of(2))
        await link(peers[0], 2)
        await until_equal(*copies)


async def test_a_long_history_crosses_in_many_batches(tmp_path):
    small = StoreConfig(sync_every=3600.0, sync_batch=2000)
    async with mesh(tmp_path, 2, config=small) as (_, (one, two)):
        here, there = await one.open("roster"), await two.open("roster")
        for number in range(100):
            here.map("m")["k"] = number
        await here.flush()
        await link(one, 2)
        await there.synced()
        assert there.map("m")["k"] == 99


async def test_peers_that_are_not_linked_find_each_other_through_the_dht(tmp_path):
    network = MemoryNetwork()
    async with contextlib.AsyncExitStack() as stack:
        _, two, three = [
            await stack.enter_async_context(
                peer(network, number, tmp_path, config=QUICK, with_dht=True)
            )
            for number in (1, 2, 3)
        ]
        network.partition(id_of(2), id_of(3))  # the first one does not have it open
        here = await two.open("roster")
        here.map("m")["k"] = 1
        network.heal(id_of(2), id_of(3))
        there = await three.open("roster")
        await until_equal(here, there)


async def test_documents_do_not_mix(tmp_path):
    async with mesh(tmp_path, 2) as (_, (one, two)):
        await link(one, 2)
        roster, notes = await one.open("roster"), await one.open("notes")
        there = await two.open("notes")
        roster.map("m")["k"] = "roster"
        notes.map("m")["k"] = "notes"
        await until_equal(notes, there)
        assert there.to_dict() == {"m": {"k": "notes"}}
        assert await one.open("notes") is notes
        assert set(one.opened) == {"roster", "notes"}


async def test_a_document_is_there_again_after_a_restart(tmp_path):
    async with mesh(tmp_path, 1) as (_, (one,)):
        document = await one.open("roster")
        document.map("m").update(a=1, b=[2])
        with document.transaction():
            document.map("m").delete("a")
            document.map("n")["c"] = 3
        before = (document.to_dict(), document.digest(), document.heads())
    async with mesh(tmp_path, 1) as (_, (one,)):
        document = await one.open("roster")
        assert (document.to_dict(), document.digest(), document.heads()) == before
        document.map("m")["more"] = 4
        await document.flush()
    async with mesh(tmp_path, 1) as (_, (one,)):
        assert (await one.open("roster")).map("m")["more"] == 4


async def test_a_peer_that_lost_its_disk_learns_its_own_chain_before_it_writes(tmp_path):
    network = MemoryNetwork()
    async with peer(network, 2, tmp_path) as two:
        there = await two.open("roster")
        async with peer(network, 1, tmp_path / "lost") as one:
            await link(one, 2)
            (await one.open("roster")).map("m")["k"] = 1
            await until_equal(await one.open("roster"), there)
        async with peer(network, 1, tmp_path / "new") as one:
            await link(one, 2)
            here = await one.open("roster")
            here.map("m")["k"] = 2
            await until_equal(here, there)
            assert there.to_dict() == {"m": {"k": 2}}
            assert not [key for key in two.counters if key.startswith("refused")]


async def test_a_member_that_may_only_read_reads_and_cannot_write(tmp_path):
    network = MemoryNetwork()
    async with peer(network, 1, tmp_path) as one, peer(network, 2, tmp_path, grants.CALL) as two:
        await link(one, 2)
        here, there = await one.open("roster"), await two.open("roster")
        here.map("m")["k"] = 1
        await until_equal(here, there)
        with pytest.raises(GrantError, match="write:roster"):
            there.map("m")["k"] = 2
        assert there.to_dict() == {"m": {"k": 1}}


async def test_a_peer_without_the_call_grant_gets_nothing(tmp_path):
    network = MemoryNetwork()
    async with peer(network, 1, tmp_path) as one, peer(network, 2, tmp_path, grants.HOST) as two:
        await link(one, 2)
        here, there = await one.open("roster"), await two.open("roster")
        here.map("m")["k"] = 1
        await here.flush()
        await there.synced()
        assert there.to_dict() == {}
        assert two.counters["failed:PermissionDeniedError"] >= 1


async def test_forged_and_forked_updates_that_a_peer_pushes_are_refused_and_counted(tmp_path):
    async with mesh(tmp_path, 1) as (network, (one,)):
        document = await one.open("roster")
        clock = ManualClock(NOW)
        liar = MemoryLinks(network, identity(9), membership(identity(9)), clock=clock)
        async with Rpc(liar) as rpc:
            stub = rpc.client(id_of(1), DocumentsService, SERVICE)
            honest, twin = replica(9), replica(9)
            assert await stub.push("roster", (write(honest, "k", encode_value(1)),))
            forged = seal(3, b"", shown=membership(identity(9)))
            fork = write(twin, "k", encode_value(2))
            await stub.push("roster", (forged, fork))
            assert document.to_dict() == {}
            assert one.counters["refused:unauthorised"] == 1
            assert one.counters["refused:forked"] == 1
            assert document.counters["refused:forked"] == 1
            await document.flush()
    async with mesh(tmp_path, 1) as (_, (one,)):
        document = await one.open("roster")
        assert document.to_dict() == {}
        assert (await one.verify("roster")).forks == 1


async def test_watchers_see_every_author_and_merge_what_comes_fast(tmp_path):
    async with mesh(tmp_path, 2) as (_, (one, two)):
        await link(one, 2)
        here, there = await one.open("roster"), await two.open("roster")
        changes = here.watch()
        here.map("m")["a"] = 1
        here.map("m")["b"] = 1
        assert (await anext(changes)).authors == {id_of(1)}
        there.map("m")["c"] = 1
        with anyio.fail_after(5):
            assert (await anext(changes)).authors == {id_of(2)}
        assert here.map("m") == {"a": 1, "b": 1, "c": 1}


async def test_a_map_behaves_like_a_dict(tmp_path):
    async with mesh(tmp_path, 1) as (_, (one,)):
        entries = (await one.open("roster")).map("m")
        entries["b"], entries["a"] = {"x": 1}, 2
        assert list(entries) == ["a", "b"]
        assert dict(entries.items()) == {"a": 2, "b": {"x": 1}}
        assert entries.get("none") is None
        assert "a" in entries
        assert 1 not in entries
        assert len(entries) == 2
        assert entries.pop("a") == 2
        entries.delete("a")
        with pytest.raises(KeyError):
            del entries["a"]
        with pytest.raises(KeyError):
            entries["a"]
        with pytest.raises(DocumentError, match="object"):
            entries["c"] = object()
        with pytest.raises(DocumentError, match="no name"):
            entries["\x00"] = 1
        assert entries == {"b": {"x": 1}}


@pytest.mark.parametrize("name", ["", "UPPER", "a b", "../x", "a\n", "x" * 200, 3])
async def test_a_bad_name_is_refused(tmp_path, name):
    async with mesh(tmp_path, 1) as (_, (one,)):
        with pytest.raises(DocumentError):
            await one.open(name)


async def test_a_file_that_is_no_database_is_told_with_the_cure(tmp_path):
    (home(tmp_path, 1)).mkdir()
    (home(tmp_path, 1) / "documents.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="move it away"):
        async with mesh(tmp_path, 1):
            pass


async def test_a_damaged_row_is_told_and_not_served(tmp_path):
    async with mesh(tmp_path, 1) as (_, (one,)):
        document = await one.open("roster")
        document.map("m")["k"] = 1
        await document.flush()
        one._database._connection.execute("UPDATE envelopes SET envelope = zeroblob(90)")
    async with mesh(tmp_path, 1) as (_, (one,)):
        with pytest.raises(StoreError, match="damaged"):
            await one.open("roster")


async def test_a_disk_that_is_full_is_told_and_made_good(tmp_path, monkeypatch):
    config = StoreConfig(sync_every=0.02)
    async with mesh(tmp_path, 2, config=config) as (_, (one, two)):
        await link(one, 2)
        here, there = await one.open("roster"), await two.open("roster")
        append = one._database.append

        def full(*_: object) -> None:
            raise StoreError("disk full")

        monkeypatch.setattr(one._database, "append", full)
        here.map("m")["k"] = 1
        with pytest.raises(StoreError, match="disk full"):
            await here.flush()
        assert there.to_dict() == {}, "what is not safe does not leave"
        monkeypatch.setattr(one._database, "append", append)
        await until_equal(here, there)
        await here.flush()
