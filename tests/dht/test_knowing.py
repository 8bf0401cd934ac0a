"""What those asked leave out because the asking peer has it, and what they must not."""

from __future__ import annotations

import anyio
import pytest
from kademlia.node import Node

from lattica.dht.digests import contacts_digest, records_digest
from lattica.dht.keys import node_id
from lattica.dht.knowing import Knowing
from lattica.dht.messages import SERVICE, FindReply
from lattica.dht.protocol import FindAnswer
from lattica.dht.routing import PeerNode
from lattica.dht.service import DhtService
from tests.dht.mesh import Mesh, Peer, mesh
from tests.dht.support import KEY, envelope, peer_id

pytestmark = pytest.mark.anyio


async def ask(one: Peer, other: Peer, contacts: bytes = b"", records: bytes = b"") -> FindReply:
    service = one.rpc.client(other.id, DhtService, SERVICE)
    return await service.find(KEY, "note", (), contacts, records)


def known_to(peer: Peer) -> bytes:
    return contacts_digest(peer.dht.table.closest(int.from_bytes(KEY, "big"), 20))


def kept_by(peer: Peer, made: Mesh) -> bytes:
    kept = peer.dht.storage.get(KEY, "note", now=made.clock.time())
    return records_digest(each.envelope for each in kept)


async def test_contacts_and_records_that_the_caller_has_are_left_out() -> None:
    async with mesh(6) as made:
        one, other = made.peers[0], made.peers[4]
        await one.dht.put(KEY, "note", "hello")
        told = await ask(one, other)
        assert {each.peer for each in told.contacts} == {
            each.id for each in made.peers if each not in (one, other)
        }
        assert len(told.records.data)
        told = await ask(one, other, known_to(one), kept_by(one, made))
        assert not told.contacts
        assert not len(told.records.data)


async def test_a_single_record_or_contact_more_is_told() -> None:
    async with mesh(6) as made:
        one, other = made.peers[0], made.peers[4]
        await one.dht.put(KEY, "note", "hello")
        contacts, records = known_to(one), kept_by(one, made)
        await made.peers[2].dht.put(KEY, "note", "and I")
        one.dht.storage.discard(KEY, "note", made.peers[2].id)
        assert len((await ask(one, other, contacts, records)).records.data)
        await made.join(1)
        assert (await ask(one, other, contacts, records)).contacts


async def test_a_renewed_record_is_told_though_its_value_is_the_same() -> None:
    first, second = envelope(0, sequence=1), envelope(0, sequence=2)
    assert records_digest([first]) != records_digest([second])
    assert records_digest([first, envelope(1)]) == records_digest([envelope(1), first])
    assert records_digest([]) == b""


async def test_a_keeper_that_gets_sees_what_only_another_keeper_has() -> None:
    async with mesh(8) as made:
        reader = made.peers[3]
        for peer in made.peers[:3]:
            await peer.dht.put(KEY, "note", peer.address)
        odd = made.peers[7]
        await odd.dht.put(KEY, "note", "odd")
        for peer in made.peers[:7]:  # it has not reached the others yet
            peer.dht.storage.discard(KEY, "note", odd.id)
        found = {each.value for each in await reader.dht.get(KEY, "note", str)}
        assert found == {"odd", *(peer.address for peer in made.peers[:3])}


async def test_a_get_in_a_mesh_that_agrees_moves_neither_contacts_nor_records() -> None:
    async with mesh(8) as made:
        reader = made.peers[3]
        await reader.dht.put(KEY, "note", "x" * 1000)
        protocol = reader.dht.neighbours.protocol
        call, answers = protocol.call_find_value, []

        async def spy(*args: object) -> FindAnswer | None:
            answer = await call(*args)  # type: ignore[arg-type]
            answers.append(answer)
            return answer

        protocol.call_find_value = spy  # type: ignore[method-assign,assignment]
        assert [each.value for each in await reader.dht.get(KEY, "note", str)] == ["x" * 1000]
        assert len(answers) == 7
        assert all(answer and not answer.nodes and not len(answer.records) for answer in answers)


async def test_what_is_left_out_stands_for_what_was_told() -> None:
    nodes = [PeerNode(peer_id(number)) for number in range(5)]
    asked: list[tuple[bytes, bytes]] = []

    class Silent:
        async def call_find_value(
            self, node: PeerNode, target: Node, kind: str, contacts: bytes, records: bytes
        ) -> FindAnswer:
            await anyio.lowlevel.checkpoint()
            asked.append((contacts, records))
            return FindAnswer([], b"")

    knowing = Knowing(Silent(), nodes, lambda: b"held")  # type: ignore[arg-type]
    target = Node(node_id(peer_id(9)))
    answer = await knowing.call_find_value(nodes[2], target, "note")
    assert answer is not None
    assert answer.nodes == [*nodes[:2], *nodes[3:]]
    await knowing.call_find_node(nodes[2], target)
    assert asked == [(contacts_digest(nodes), b"held"), (contacts_digest(nodes), b"")]
