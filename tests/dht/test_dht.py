"""Records and peers found through the DHT, by everybody it is meant for."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from lattica.config import DhtConfig
from lattica.dht import PeerAddresses, dht_key, node_id
from lattica.dht.messages import SERVICE
from lattica.dht.service import DhtService
from lattica.errors import (
    BadArgumentsError,
    DhtError,
    PermissionDeniedError,
    RecordError,
    UnreachableError,
)
from lattica.identity.tickets import Contact
from tests.dht.mesh import CONFIG, eventually, mesh
from tests.dht.support import KEY, NOW, envelope, identity, peer_id

pytestmark = pytest.mark.anyio


async def test_what_one_peer_puts_every_peer_gets() -> None:
    async with mesh(5) as made:
        writer = made.peers[1]
        assert await writer.dht.put(KEY, "note", "hello") == 4
        for peer in made.peers:
            (found,) = await peer.dht.get(KEY, "note", str)
            assert (found.author, found.value) == (writer.id, "hello")
            assert found.expires == NOW + CONFIG.record_ttl


async def test_the_only_peer_of_a_mesh_keeps_its_own_records() -> None:
    async with mesh(1) as made:
        dht = made.peers[0].dht
        assert await dht.put(KEY, "note", "alone") == 0
        assert [found.value for found in await dht.get(KEY, "note", str)] == ["alone"]


async def test_a_record_put_before_anybody_else_was_there_is_found_by_those_who_join() -> None:
    async with mesh(1) as made:
        await made.peers[0].dht.put(KEY, "note", "early")
        (late,) = await made.join(1)
        assert [found.value for found in await late.dht.get(KEY, "note", str)] == ["early"]


async def test_a_newer_value_replaces_the_older_one_of_its_author_only() -> None:
    async with mesh(4) as made:
        first, second, *_ = made.peers
        await first.dht.put(KEY, "note", "old")
        await second.dht.put(KEY, "note", "other")
        await first.dht.put(KEY, "note", "new")
        for peer in made.peers:
            found = await peer.dht.get(KEY, "note", str)
            assert [record.value for record in found] == ["new", "other"]


async def test_64_concurrent_writers_of_one_key_are_all_kept() -> None:
    async with mesh(64) as made:
        async with anyio.create_task_group() as writers:
            for number, peer in enumerate(made.peers):
                writers.start_soon(peer.dht.put, KEY, "note", str(number))
        for reader in made.peers[::21]:
            found = await reader.dht.get(KEY, "note", str)
            assert {record.author: record.value for record in found} == {
                peer.id: str(number) for number, peer in enumerate(made.peers)
            }


async def test_an_answer_larger_than_a_control_message_arrives_whole() -> None:
    async with mesh(24) as made:
        for peer in made.peers:
            await peer.dht.put(KEY, "blob", bytes(15_000))
        (newcomer,) = await made.join(1)
        found = await newcomer.dht.get(KEY, "blob", bytes)
        assert [len(record.value) for record in found] == [15_000] * 24


async def test_a_removed_record_is_gone_even_where_an_old_copy_survived() -> None:
    async with mesh(4) as made:
        author, cut_off, *_ = made.peers
        await author.dht.put(KEY, "note", "hello")
        made.network.partition(author.id, cut_off.id)
        assert await author.dht.remove(KEY, "note") == 2
        assert await author.dht.remove(KEY, "note") == 0
        copies = cut_off.dht.storage.get(KEY, "note", now=NOW)
        assert [kept.record.removed for kept in copies] == [False]
        for peer in made.peers[1:]:
            assert await peer.dht.get(KEY, "note", str) == []
        assert await author.dht.republish() == 1  # the "peer" record, and no other


async def test_a_record_lives_by_republishing_and_dies_without() -> None:
    async with mesh(4) as made:
        author, reader, *_ = made.peers
        await author.dht.put(KEY, "note", "hello")
        for _ in range(5):
            made.clock.advance(CONFIG.record_ttl * 0.8)
            assert await author.dht.republish() == 2
            for peer in made.peers:
                peer.dht.expire()
            (found,) = await reader.dht.get(KEY, "note", str)
            assert found.expires == made.clock.time() + CONFIG.record_ttl
        made.clock.advance(CONFIG.record_ttl)
        assert await reader.dht.get(KEY, "note", str) == []
        assert reader.dht.expire() == 2  # this record, and its author's addresses
        assert await author.dht.republish() == 2
        assert len(await reader.dht.get(KEY, "note", str)) == 1


async def test_upkeep_renews_a_record_when_it_is_time() -> None:
    async with mesh(3) as made:
        reader, _, author = made.peers
        short, usual = dht_key("test", "short"), dht_key("test", "usual")
        await author.dht.put(short, "note", "hello", ttl=30.0)
        await author.dht.put(usual, "note", "hello")

        async def expiries() -> list[float]:
            found = [(await reader.dht.get(key, "note", str))[0] for key in (short, usual)]
            return [record.expires - NOW for record in found]

        await author.dht.maintain()
        assert await expiries() == [30.0, CONFIG.record_ttl]
        made.clock.advance(10.0)  # a third of the shorter ttl
        await author.dht.maintain()
        assert await expiries() == [40.0, CONFIG.record_ttl]
        made.clock.advance(CONFIG.republish_every - 10.0)
        await author.dht.maintain()
        assert await expiries() == [70.0, CONFIG.republish_every + CONFIG.record_ttl]


async def test_what_a_lone_peer_said_is_copied_soon_after_another_joins() -> None:
    async with mesh(1) as made:
        first = made.peers[0]
        await first.dht.put(KEY, "note", "early")
        (second,) = await made.join(1)
        await eventually(lambda: len(first.dht.table) == 1)
        assert second.dht.storage.get(KEY, "note", now=NOW) == []
        await first.dht.maintain()
        assert len(second.dht.storage.get(KEY, "note", now=NOW)) == 1


async def test_a_peer_that_leaves_takes_back_what_it_said() -> None:
    async with mesh(4) as made:
        leaver, *rest = made.peers
        keys = [dht_key("test", str(number)) for number in range(5)]
        for key in keys:
            await leaver.dht.put(key, "note", "mine")
        await leaver.dht.leave()
        for key in keys:
            assert await rest[1].dht.get(key, "note", str) == []


async def test_the_upkeep_loop_runs_by_itself() -> None:
    async with mesh(2, config=DhtConfig(maintain_every=0.01)) as made:
        author, reader = made.peers
        await author.dht.put(KEY, "note", "hello")
        made.clock.advance(1000.0)
        await eventually(lambda: len(reader.dht.storage.get(KEY, "note", now=NOW + 1000)) == 1)


async def test_an_author_that_starts_again_is_believed_over_its_former_self() -> None:
    async with mesh(3) as made:
        author = made.peers[2]
        await author.dht.put(KEY, "note", "first life")
        await made.kill(author)
        made.clock.advance(1.0)
        again = await made.start(number=2)
        await again.dht.bootstrap([made.peers[0].contact])
        await again.dht.put(KEY, "note", "second life")
        found = await made.peers[0].dht.get(KEY, "note", str)
        assert [record.value for record in found] == ["second life"]


@pytest.mark.parametrize(
    ("key", "kind", "value", "ttl", "cause"),
    [
        (b"short", "note", "x", None, "20 bytes"),
        (KEY, "unheard-of", "x", None, "register_kind"),
        (KEY, "note", 7, None, "does not fit"),
        (KEY, "note", object(), None, "cannot be encoded"),
        (KEY, "blob", bytes(20_000), None, "larger than"),
        (KEY, "note", "x", 0.0, "ttl"),
        (KEY, "note", "x", 1e9, "ttl"),
    ],
)
async def test_a_record_that_cannot_be_is_told_at_the_call(
    key: bytes, kind: str, value: object, ttl: float | None, cause: str
) -> None:
    async with mesh(2) as made:
        dht = made.peers[0].dht
        with pytest.raises(RecordError, match=cause):
            await dht.put(key, kind, value, ttl)
        assert await dht.republish() == 1
        assert len(dht.storage) == 2  # both peers' addresses, nothing of this


async def test_a_mistyped_key_is_told() -> None:
    async with mesh(1) as made:
        with pytest.raises(RecordError, match="dht_key"):
            await made.peers[0].dht.get(b"short", "note", str)


async def test_a_kind_that_no_other_peer_knows_is_told_with_the_cure() -> None:
    async with mesh(3) as made:
        dht = made.peers[0].dht
        dht.register_kind("novelty", str)
        with pytest.raises(
            DhtError, match=r"none of 2 peers.*unknown kind.*know the record's kind"
        ):
            await dht.put(KEY, "novelty", "x")
        assert await dht.get(KEY, "novelty", str) == []


# ------------------------------------------------------------------ who may do what


async def test_a_stranger_looks_up_but_stores_nothing_and_is_in_no_table() -> None:
    async with mesh(3) as made:
        await made.peers[0].dht.put(KEY, "note", "for all")
        stranger = await made.start(member=False)
        await stranger.dht.bootstrap([made.peers[0].contact])
        found = await stranger.dht.get(KEY, "note", str)
        assert [record.value for record in found] == ["for all"]
        with pytest.raises(DhtError, match="grants 'call'"):
            await stranger.dht.put(KEY, "note", "graffiti")
        stub = made.peers[0].rpc.client(stranger.id, DhtService, SERVICE)
        await stub.ping(())
        for peer in made.peers[:3]:
            assert peer.dht.table.find(stranger.id) is None
            assert len(await peer.dht.get(KEY, "note", str)) == 1


async def test_a_client_uses_the_dht_and_is_in_no_table() -> None:
    async with mesh(3) as made:
        client = await made.start(serve=False)
        await client.dht.bootstrap([made.peers[0].contact])
        assert await client.dht.put(KEY, "note", "from a client") == 3
        found = await made.peers[2].dht.get(KEY, "note", str)
        assert [record.author for record in found] == [client.id]
        for peer in made.peers[:3]:
            await eventually(lambda peer=peer: not peer.dht.neighbours.probing)
            assert peer.dht.table.find(client.id) is None


async def test_nobody_stores_in_another_name() -> None:
    async with mesh(2) as made:
        thief, victim = made.peers
        stub = thief.rpc.client(victim.id, DhtService, SERVICE)
        with pytest.raises(RecordError, match="by its author"):
            await stub.store(envelope(77), ())
        forged = envelope(0, domain="other")
        assert forged.author == thief.id
        with pytest.raises(RecordError, match="forged"):
            await stub.store(forged, ())
        old = envelope(0, expires=NOW - 1)
        with pytest.raises(RecordError, match="expired"):
            await stub.store(old, ())
        assert victim.dht.counters["refused:author"] == 1
        assert victim.dht.counters["refused:invalid"] == 2
        assert await victim.dht.get(KEY, "note", str) == []


async def test_a_replay_over_the_network_is_refused_and_counted() -> None:
    async with mesh(2) as made:
        author, keeper = made.peers
        stub = author.rpc.client(keeper.id, DhtService, SERVICE)
        await stub.store(envelope(0, sequence=2), ())
        with pytest.raises(RecordError, match="newer"):
            await stub.store(envelope(0, sequence=1), ())
        assert keeper.dht.counters["refused:stale"] == 1


async def test_a_stranger_is_refused_by_the_service_itself() -> None:
    async with mesh(1) as made:
        stranger = await made.start(member=False)
        stub = stranger.rpc.client(made.peers[0].id, DhtService, SERVICE)
        with pytest.raises(PermissionDeniedError):
            await stub.store(envelope(1), ())
        with pytest.raises(BadArgumentsError):
            await stub.find(b"short", "note", ())


# ------------------------------------------------------------------ finding peers


async def test_a_peer_is_found_with_its_addresses_and_links_learn_them() -> None:
    async with mesh(8) as made:
        seeker, sought = made.peers[1], made.peers[6]
        assert await seeker.dht.find_peer(sought.id) == sought.contact
        assert seeker.links.learned[sought.id] == (sought.address,)
        assert await seeker.dht.find_peer(seeker.id) == seeker.contact


async def test_a_peer_that_nobody_knows_is_none() -> None:
    async with mesh(3) as made:
        assert await made.peers[0].dht.find_peer(peer_id(12345)) is None


async def test_look_ups_return_contacts_with_addresses() -> None:
    async with mesh(10) as made:
        addresses = {peer.id: (peer.address,) for peer in made.peers}
        found = await made.peers[3].dht.closest(KEY)
        assert {node.peer: node.addresses for node in found} == {
            peer: address for peer, address in addresses.items() if peer != made.peers[3].id
        }


async def test_a_changed_address_is_published_at_the_next_upkeep() -> None:
    async with mesh(3) as made:
        seeker, _, moved = made.peers
        moved.dht._addresses = lambda: ("10.9.9.9:9",)
        await moved.dht.maintain()
        (found,) = await seeker.dht.get(node_id(moved.id), "peer", PeerAddresses)
        assert found.value.addresses == ("10.9.9.9:9",)


# ------------------------------------------------------------------ bootstrap


async def test_bootstrap_with_nobody_there_says_what_was_wrong() -> None:
    async with mesh() as made:
        peer = await made.start()
        assert await peer.dht.bootstrap() == 0
        with pytest.raises(DhtError, match=r"none of 1 contacts.*lattica invite") as caught:
            await peer.dht.bootstrap([Contact(identity(50).peer_id, ("10.0.0.1:1",))])
        assert isinstance(caught.value.__cause__, UnreachableError)


async def test_bootstrap_needs_one_contact_of_several() -> None:
    async with mesh(2) as made:
        peer = await made.start()
        gone = Contact(identity(50).peer_id, ("10.0.0.1:1",))
        assert await peer.dht.bootstrap([gone, made.peers[0].contact, peer.contact]) == 1
        assert await peer.dht.find_peer(made.peers[1].id) == made.peers[1].contact


async def test_those_close_by_learn_of_a_peer_that_joins() -> None:
    async with mesh(6) as made:
        (newcomer,) = await made.join(1)
        for peer in made.peers[:-1]:
            await eventually(lambda peer=peer: peer.dht.table.find(newcomer.id) is not None)


async def test_a_restarted_peer_comes_back_by_the_contacts_it_kept(tmp_path: Path) -> None:
    async with mesh(3) as made:
        peer = await made.start(number=40, directory=tmp_path)
        await peer.dht.bootstrap([made.peers[0].contact])
        await made.kill(peer)
        again = await made.start(number=40, directory=tmp_path)
        assert await again.dht.bootstrap() == 3
        assert len(again.dht.table) == 3


async def test_a_peer_that_lost_everybody_starts_again_by_itself() -> None:
    async with mesh(4) as made:
        peer = made.peers[3]
        peer.dht.table.flush()
        peer.dht.neighbours._entries = {made.peers[0].id: made.peers[0].contact}
        await peer.dht.maintain()
        assert len(peer.dht.table) == 3


# ------------------------------------------------------------------ watching


async def test_watch_tells_of_what_comes_changes_and_goes() -> None:
    async with mesh(3) as made:
        author, watcher, _ = made.peers
        seen: list[list[str]] = []
        async for found in watcher.dht.watch(KEY, "note", str, every=0.005):
            seen.append([record.value for record in found])
            match len(seen):
                case 1:
                    await author.dht.put(KEY, "note", "one")
                case 2:
                    await author.dht.republish()  # a mere renewal
                    await author.dht.put(KEY, "note", "two")
                case 3:
                    await author.dht.remove(KEY, "note")
                case _:
                    break
        assert seen == [[], ["one"], ["two"], []]


async def test_a_key_of_a_service_is_the_same_on_all_peers() -> None:
    async with mesh(4) as made:
        for number, peer in enumerate(made.peers):
            await peer.dht.put(dht_key("service", "echo"), "note", str(number))
        found = await made.peers[0].dht.get(dht_key("service", b"echo"), "note", str)
        assert sorted(record.value for record in found) == ["0", "1", "2", "3"]
