"""Documents whose history is on disk only: opened fast, served whole, and cut when need be."""

from __future__ import annotations

import pytest

from lattica.clock import ManualClock
from lattica.config import StoreConfig
from lattica.errors import DocumentError, GrantError
from lattica.identity import grants
from lattica.link.memory import MemoryLinks, MemoryNetwork
from lattica.rpc import Rpc
from lattica.store import Documents
from lattica.store.chains.messages import SERVICE
from lattica.store.crdt.values import encode_value
from lattica.store.documents.service import DocumentsService
from tests.store.mesh import (
    HOUR,
    NOW,
    authority,
    identity,
    membership,
    replica,
    until_equal,
    write,
)
from tests.store.test_documents import SLOW, id_of, link, mesh, peer

pytestmark = pytest.mark.anyio

SMALL = StoreConfig(sync_every=3600.0, snapshot_every=8)


async def write_many(documents: Documents, count: int, name: str = "m") -> None:
    document = await documents.open("roster")
    for number in range(count):
        document.map(name)[f"k{number % 7}"] = number
        await document.flush()


def in_memory(documents: Documents) -> int:
    """How many updates a peer holds in memory."""
    return len(documents._copies["roster"].replica.recent())


def rows(documents: Documents) -> int:
    return documents._database._connection.execute("SELECT COUNT(*) FROM snapshots").fetchone()[0]


async def test_history_leaves_the_memory_and_stays_on_disk(tmp_path):
    async with mesh(tmp_path, 1, config=SMALL) as (_, (one,)):
        await write_many(one, 50)
        document = await one.open("roster")
        assert in_memory(one) < 20
        assert rows(one) == 1
        content = document.to_dict()
    async with mesh(tmp_path, 1, config=SMALL) as (_, (one,)):
        document = await one.open("roster")
        assert in_memory(one) < 20, "only what came after the snapshot is read"
        assert document.to_dict() == content
        assert document.heads() == {id_of(1): 50}
        assert [r.sequence async for r in document.history()] == list(range(1, 51))
        document.map("m")["more"] = 1
        assert (await one.verify("roster")).updates == {id_of(1): 51}


async def test_a_new_peer_gets_all_of_what_is_on_disk_only(tmp_path):
    config = StoreConfig(sync_every=3600.0, snapshot_every=8, sync_batch=2000)
    async with mesh(tmp_path, 3, config=config) as (_, (one, two, three)):
        await link(one, 2)
        await two.open("roster")
        await write_many(one, 60)
        await write_many(two, 30, "n")
        here = await one.open("roster")
        await here.compact()
        assert in_memory(one) == 0
        await link(one, 3)
        there = await three.open("roster")
        await until_equal(here, there)
        assert there.heads() == here.heads()
        assert not [key for key in three.counters if key.startswith("refused")]


async def test_a_peer_that_was_away_gets_what_it_missed_from_disk(tmp_path):
    network = MemoryNetwork()
    async with peer(network, 1, tmp_path, config=SMALL) as one:
        async with peer(network, 2, tmp_path, config=SMALL) as two:
            await link(one, 2)
            await two.open("roster")
            await write_many(one, 20)
            await until_equal(await one.open("roster"), await two.open("roster"))
        await write_many(one, 40)
        async with peer(network, 2, tmp_path, config=SMALL) as two:
            await link(one, 2)
            there = await two.open("roster")
            await until_equal(await one.open("roster"), there)
            await there.flush()
            assert two._database.contents()["roster"] == {id_of(1).raw: 60}


async def test_a_fork_in_what_is_on_disk_only_is_cut_there(tmp_path):
    async with mesh(tmp_path, 2, config=SMALL) as (network, (one, two)):
        await link(one, 2)
        document, there = await one.open("roster"), await two.open("roster")
        liar = MemoryLinks(network, identity(9), membership(identity(9)), clock=ManualClock(NOW))
        async with Rpc(liar) as rpc:
            stub = rpc.client(id_of(1), DocumentsService, SERVICE)
            honest, twin = replica(9), replica(9)
            branch = [write(honest, "k", encode_value(value)) for value in range(30)]
            await stub.push("roster", tuple(branch), ())
            await until_equal(document, there)
            document.map("m")["mine"] = 1
            await document.compact()
            await there.compact()
            assert document.heads()[id_of(9)] == 30
            for envelope in branch[:10]:
                twin.receive([envelope])
            await stub.push("roster", (write(twin, "k", encode_value(-1)),), ())
            await until_equal(document, there)
            assert document.heads() == there.heads() == {id_of(9): 10, id_of(1): 1}
            assert document.to_dict() == {"m": {"k": 9, "mine": 1}}
            await document.flush()
    async with mesh(tmp_path, 1, config=SMALL) as (_, (one,)):
        document = await one.open("roster")
        assert document.heads() == {id_of(9): 10, id_of(1): 1}
        assert (await one.verify("roster")).forks == 1


async def test_peers_whose_snapshots_end_in_different_branches_find_out(tmp_path):
    """Neither has in memory what it could show, and both are at the number of the other."""
    async with mesh(tmp_path, 2, config=SMALL) as (network, (one, two)):
        documents = [await each.open("roster") for each in (one, two)]
        liar = MemoryLinks(network, identity(9), membership(identity(9)), clock=ManualClock(NOW))
        async with Rpc(liar) as rpc:
            honest, twin = replica(9), replica(9)
            twin.receive([write(honest, "k", encode_value(0))])
            for number, branch in ((1, honest), (2, twin)):
                write(branch, "k", encode_value(number))
                batch = branch.missing((), limit=10**9)
                assert batch is not None
                stub = rpc.client(id_of(number), DocumentsService, SERVICE)
                await stub.push("roster", batch.envelopes, ())
        for document in documents:
            assert document.heads() == {id_of(9): 2}
            await document.compact()
        await link(one, 2)
        await until_equal(*documents)
        assert [document.heads() for document in documents] == [{id_of(9): 1}] * 2
        assert documents[0].to_dict() == {"m": {"k": 0}}


async def test_a_damaged_snapshot_costs_time_and_nothing_else(tmp_path):
    async with mesh(tmp_path, 1, config=SMALL) as (_, (one,)):
        await write_many(one, 20)
        content = (await one.open("roster")).to_dict()
        await (await one.open("roster")).compact()
        data = bytearray(one._database.snapshot("roster"))
        data[len(data) // 2] ^= 1
        one._database._connection.execute("UPDATE snapshots SET snapshot = ?", (bytes(data),))
    async with mesh(tmp_path, 1, config=SMALL) as (_, (one,)):
        document = await one.open("roster")
        assert document.to_dict() == content
        assert in_memory(one) == 20


async def test_the_authority_revokes_and_every_peer_cuts(tmp_path):
    network = MemoryNetwork()
    async with (
        peer(network, 1, tmp_path, config=SMALL) as one,
        peer(network, 2, tmp_path, config=SMALL) as two,
        peer(network, 3, tmp_path, config=SMALL, authority_key=authority) as ruler,
    ):
        for documents in (one, two):
            await documents._rpc.links.connect(id_of(3))
        here, there, throne = [await d.open("roster") for d in (one, two, ruler)]
        here.map("m")["k"] = 1
        await until_equal(here, there, throne)
        with pytest.raises(GrantError, match="authority"):
            await there.revoke(id_of(1))
        await throne.revoke(id_of(1))
        for document in (here, there):
            await document.synced()
        with pytest.raises(GrantError, match="revoked"):
            here.map("m")["k"] = 2
        there.map("m")["k"] = 3
        await until_equal(here, there, throne)
        assert throne.to_dict() == {"m": {"k": 3}}
        with pytest.raises(DocumentError, match="itself"):
            await throne.revoke(authority.peer_id)


async def test_the_authority_lets_a_reader_write(tmp_path):
    network = MemoryNetwork()
    async with (
        peer(network, 1, tmp_path, grants.CALL, config=SLOW) as one,
        peer(network, 3, tmp_path, config=SLOW, authority_key=authority) as ruler,
    ):
        await one._rpc.links.connect(id_of(3))
        here, throne = await one.open("roster"), await ruler.open("roster")
        await throne.grant(id_of(1), until=NOW + HOUR)
        await here.synced()
        here.map("m")["k"] = 1
        await until_equal(here, throne)
    async with peer(network, 1, tmp_path, grants.CALL, config=SLOW) as one:
        (await one.open("roster")).map("m")["k"] = 2
