"""Peers that die, hang, raise and lie."""

from __future__ import annotations

import asyncio
import random

import anyio
import pytest

from lattica.config import DhtConfig
from lattica.dht import dht_key, node_id
from lattica.dht.messages import SERVICE, FindReply
from lattica.dht.records import PEER
from lattica.dht.routing import PeerNode
from lattica.dht.service import DhtService
from lattica.errors import DeadlineError
from lattica.identity import wire
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed
from lattica.identity.tickets import Contact
from lattica.rpc import Buffer, caller, method
from tests.dht.mesh import CONFIG, Mesh, Peer, eventually, mesh
from tests.dht.support import KEY, NOW, envelope, peer_id

pytestmark = pytest.mark.anyio


async def test_60_peers_find_every_record_and_still_do_when_18_are_killed() -> None:
    rng = random.Random(11)
    async with mesh(60) as made:
        keys = {}
        for number, peer in enumerate(made.peers):
            keys[peer.id] = dht_key("test", f"record {number}")
            assert await peer.dht.put(keys[peer.id], "note", str(number)) == CONFIG.replicas
        await check_all_found(made, keys, rng)
        victims = rng.sample(made.peers, 18)
        for victim in victims:
            await made.kill(victim)
        await check_all_found(made, keys, rng)
        for survivor in made.peers[::7]:
            assert not any([await survivor.dht.alive(victim.id) for victim in victims])
            assert all([await survivor.dht.alive(peer.id) for peer in made.peers])
            close = {node.peer for node in await survivor.dht.closest(KEY)}
            assert not close & {victim.id for victim in victims}


async def check_all_found(made: Mesh, keys: dict[PeerId, bytes], rng: random.Random) -> None:
    for author, key in keys.items():
        reader = rng.choice(made.peers)
        found = await reader.dht.get(key, "note", str)
        assert [record.author for record in found] == [author]


async def test_look_ups_in_a_mesh_of_60_return_the_true_closest() -> None:
    rng = random.Random(12)
    async with mesh(60) as made:
        for _ in range(20):
            target = rng.randbytes(20)
            place = int.from_bytes(target, "big")
            asking = rng.choice(made.peers)
            ids = {node_id(peer.id): peer.id for peer in made.peers if peer is not asking}
            expected = sorted(ids, key=lambda raw: int.from_bytes(raw, "big") ^ place)
            found = await asking.dht.closest(target)
            assert [node.peer for node in found] == [ids[raw] for raw in expected[: CONFIG.k]]


async def test_a_killed_peer_leaves_the_tables_and_a_lost_link_alone_does_not() -> None:
    async with mesh(4) as made:
        one, other, victim, _ = made.peers
        await eventually(lambda: one.dht.table.find(victim.id) is not None)
        link = one.links.find(other.id)
        assert link is not None
        link.close("a cable was pulled and put back")
        await made.kill(victim)
        for peer in made.peers:
            await eventually(lambda peer=peer: peer.dht.table.find(victim.id) is None)
        await eventually(lambda: not one.dht.neighbours.probing)
        assert one.dht.table.find(other.id) is not None
        assert await one.dht.alive(other.id)


async def test_look_ups_leave_a_lost_peer_out_before_its_ping_is_decided() -> None:
    async with mesh(4) as made:
        one, *_, victim = made.peers
        node = one.dht.table.find(victim.id)
        assert node is not None
        victim.links.leave()  # nothing else has had a turn since
        assert await one.dht.neighbours.protocol.call_find_node(node, node) is None
        assert one.dht.counters["skipped:suspect"] == 1
        await made.kill(victim)
        assert not await one.dht.alive(victim.id)


async def test_only_live_authors_are_listed_when_asked_for() -> None:
    async with mesh(5) as made:
        for peer in made.peers:
            await peer.dht.put(KEY, "note", "here")
        victim = made.peers[2]
        await made.kill(victim)
        reader = made.peers[0]
        assert len(await reader.dht.get(KEY, "note", str)) == 5
        live = await reader.dht.get(KEY, "note", str, live=True)
        assert {record.author for record in live} == {peer.id for peer in made.peers}


async def test_a_dead_peer_is_not_asked_again_for_a_while_and_then_is() -> None:
    async with mesh(2) as made:
        one, victim = made.peers
        await made.kill(victim)
        assert not await one.dht.alive(victim.id)
        again = await made.start(number=1)
        assert not await one.dht.alive(victim.id)
        made.clock.advance(CONFIG.suspect_for)
        assert await one.dht.alive(again.id)


async def test_a_dead_peer_that_calls_is_alive_at_once() -> None:
    async with mesh(2) as made:
        one, victim = made.peers
        await made.kill(victim)
        assert not await one.dht.alive(victim.id)
        again = await made.start(number=1)
        await again.dht.bootstrap([one.contact])
        assert await one.dht.alive(again.id)


async def test_a_link_on_which_nothing_is_heard_does_not_show_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with mesh(3) as made:
        one, other, _ = made.peers
        protocol = one.dht.neighbours.protocol

        async def unanswered(node: PeerNode) -> bool:
            protocol._unanswered(node, DeadlineError("no answer in time"))
            return False

        monkeypatch.setattr(protocol, "call_ping", unanswered)
        assert await one.dht.alive(other.id)  # slow, but it is heard
        assert one.dht.table.find(other.id) is not None
        peers, now = one.links._peers, asyncio.get_running_loop().time()
        peers.tell(peers.supervisor.suspect(other.id, "nothing was heard", now))
        assert one.links.find(other.id) is not None
        assert not await one.dht.alive(other.id)
        assert one.dht.table.find(other.id) is None
        assert protocol.is_suspect(other.id)
        peers.tell(peers.supervisor.heard(other.id, now))
        assert not protocol.is_suspect(other.id)


async def test_memory_for_suspects_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lattica.dht.protocol.MAX_SUSPECTS", 5)
    async with mesh(1) as made:
        for number in range(20):
            assert not await made.peers[0].dht.alive(peer_id(number))
        assert len(made.peers[0].dht.neighbours.protocol._suspects) == 5


async def test_a_peer_that_serves_no_dht_is_alive_while_its_link_is() -> None:
    async with mesh(1) as made:
        client = await made.start(serve=False)
        assert await made.peers[0].dht.alive(client.id)
        assert made.peers[0].dht.table.find(client.id) is None
        await made.kill(client)
        assert not await made.peers[0].dht.alive(client.id)


async def test_two_halves_of_a_cut_network_find_each_other_again() -> None:
    async with mesh(8) as made:
        left, right = made.peers[:4], made.peers[4:]
        for one in left:
            for other in right:
                made.network.partition(one.id, other.id)
        for peer in made.peers:
            await eventually(lambda peer=peer: len(peer.dht.table) == 3)
        await left[0].dht.put(KEY, "note", "left")
        assert await right[0].dht.get(KEY, "note", str) == []
        for one in left:
            for other in right:
                made.network.heal(one.id, other.id)
        made.clock.advance(CONFIG.republish_every)
        await left[3].dht.maintain()
        assert len(await right[0].dht.get(KEY, "note", str)) == 1
        assert len(left[3].dht.table) == 7
        assert await left[3].dht.neighbours.reunite() == 0


# ------------------------------------------------------------------ peers that misbehave


class Raising(DhtService):
    """Answers pings, and raises at everything else."""

    def __init__(self) -> None:
        pass

    @method(scope=None)
    async def ping(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
        return ()

    @method(scope=None)
    async def find(
        self,
        target: bytes,
        kind: str,
        addresses: tuple[str, ...],
        contacts: bytes = b"",
        records: bytes = b"",
    ) -> FindReply:
        raise ZeroDivisionError("a bug")

    @method(scope=None)
    async def store(self, envelope: Signed, addresses: tuple[str, ...]) -> None:
        raise ZeroDivisionError("a bug")


class Hanging(Raising):
    """Answers pings, and nothing else."""

    @method(scope=None)
    async def find(
        self,
        target: bytes,
        kind: str,
        addresses: tuple[str, ...],
        contacts: bytes = b"",
        records: bytes = b"",
    ) -> FindReply:
        await anyio.Event().wait()
        raise AssertionError

    @method(scope=None)
    async def store(self, envelope: Signed, addresses: tuple[str, ...]) -> None:
        await anyio.Event().wait()


class Lying(Raising):
    """Answers look-ups with what it likes."""

    def __init__(self, records: bytes, contacts: tuple[Contact, ...] = ()) -> None:
        self._reply = FindReply(("no address", "10.0.0.1:77"), contacts, Buffer(records))

    @method(scope=None)
    async def find(
        self,
        target: bytes,
        kind: str,
        addresses: tuple[str, ...],
        contacts: bytes = b"",
        records: bytes = b"",
    ) -> FindReply:
        return self._reply


async def with_bad_peer(made: Mesh, service: DhtService) -> Peer:
    """A member that is in everybody's table and serves `service` for a DHT."""
    bad = await made.start(with_dht=False)
    bad.rpc.register(SERVICE, service)
    for peer in made.peers[:-1]:
        await bad.links.connect(peer.id)
        assert await peer.dht.alive(bad.id)
        assert peer.dht.table.find(bad.id) is not None
    return bad


IMPATIENT = DhtConfig(query_timeout=0.5, slow_query=0.2, maintain_every=3600.0)


@pytest.mark.parametrize("service", [Raising(), Hanging()])
async def test_a_peer_that_raises_or_hangs_aborts_nothing(service: DhtService) -> None:
    async with mesh(6, config=IMPATIENT) as made:
        bad = await with_bad_peer(made, service)
        writer, reader = made.peers[0], made.peers[3]
        with anyio.fail_after(IMPATIENT.query_timeout * 6):
            assert await writer.dht.put(KEY, "note", "hello") == 5
            assert len(await reader.dht.get(KEY, "note", str)) == 1
        assert bad.id not in {node.peer for node in await reader.dht.closest(KEY)}


async def test_a_replica_that_lies_is_not_believed() -> None:
    async with mesh(4) as made:
        author = made.peers[0]
        truth = envelope(0, value="truth", sequence=5)
        lies = [
            envelope(0, value="older", sequence=4),
            envelope(0, value="newer", sequence=9, domain="not-a-record"),
            Signed(author.id, truth.domain, envelope(1, sequence=9).payload, truth.signature),
            envelope(2, key=dht_key("test", "elsewhere")),
            envelope(3, expires=NOW - 5),
        ]
        await with_bad_peer(made, Lying(wire.encode(tuple(lies))))
        for keeper in made.peers[1:4]:
            await author.rpc.client(keeper.id, DhtService, SERVICE).store(truth, ())
        reader = made.peers[2]
        found = await reader.dht.get(KEY, "note", str)
        assert [record.value for record in found] == ["truth"]
        assert reader.dht.counters["dropped:invalid_record"] == 3
        assert reader.dht.counters["dropped:wrong_key"] == 1


async def test_a_replica_that_sends_garbage_is_counted() -> None:
    async with mesh(3) as made:
        await with_bad_peer(made, Lying(b"\xc1garbage"))
        await made.peers[0].dht.put(KEY, "note", "hello")
        reader = made.peers[1]
        assert len(await reader.dht.get(KEY, "note", str)) == 1
        assert reader.dht.counters["dropped:bad_reply"] == 1


async def test_invented_contacts_cost_bounded_work_and_are_not_returned() -> None:
    invented = tuple(Contact(peer_id(number), ("x",)) for number in range(1000, 1100))
    async with mesh(4) as made:
        bad = await with_bad_peer(made, Lying(b"", invented))
        reader = made.peers[0]
        found = {node.peer for node in await reader.dht.closest(KEY)}
        assert found == {peer.id for peer in made.peers if peer is not reader}
        assert bad.id in found  # it did answer
        assert reader.dht.counters["truncated:contacts"] == 1
        assert reader.dht.counters["unanswered:UnreachableError"] <= CONFIG.k
        assert reader.dht.table.find(bad.id).addresses == ("10.0.0.1:77",)  # type: ignore[union-attr]


async def test_hearsay_does_not_replace_what_a_peer_said_of_itself() -> None:
    async with mesh(3) as made:
        reader, honest, _ = made.peers
        await with_bad_peer(made, Lying(b"", (Contact(honest.id, ("6.6.6.6:6",)),)))
        await reader.dht.closest(KEY)
        assert reader.links.learned[honest.id] == (honest.address,)
        assert await reader.dht.find_peer(honest.id) == honest.contact


async def test_a_flood_of_new_callers_starts_a_bounded_number_of_pings() -> None:
    async with mesh(1, config=DhtConfig(max_probes=2, maintain_every=3600.0)) as made:
        victim = made.peers[0]

        class Caller(Raising):
            @method(scope=None)
            async def ping(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
                assert caller().peer == victim.id
                await anyio.Event().wait()
                return ()

        for _ in range(5):
            flooder = await made.start(with_dht=False)
            flooder.rpc.register(SERVICE, Caller())
            await flooder.rpc.client(victim.id, DhtService, SERVICE).ping(())
        assert victim.dht.neighbours.probing == 2
        assert victim.dht.counters["dropped:probe"] == 3


async def test_the_address_record_of_a_dead_peer_goes_with_its_time() -> None:
    async with mesh(3) as made:
        *rest, victim = made.peers
        await made.kill(victim)
        assert (await rest[0].dht.find_peer(victim.id)) == victim.contact
        made.clock.advance(CONFIG.record_ttl)
        assert await rest[0].dht.find_peer(victim.id) is None
        kept = rest[0].dht.storage.get(node_id(victim.id), PEER, now=made.clock.time())
        assert kept == []
