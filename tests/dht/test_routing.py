"""The table: true k closest, bounded buckets, the oldest contact checked when one is full."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kademlia.node import Node
from kademlia.routing import RoutingTable

from lattica.dht.routing import PeerNode, Table
from lattica.identity.keys import PeerId
from tests.dht.support import peer_id


def table(count: int, *, ksize: int = 20, start: int = 1) -> Table:
    built = Table(peer_id(0), ksize, lambda _: None)
    for number in range(start, start + count):
        built.add_contact(PeerNode(peer_id(number)))
    return built


def brute_force(contacts: list[PeerNode], place: int, k: int) -> list[bytes]:
    return [n.id for n in sorted(contacts, key=lambda n: n.long_id ^ place)[:k]]


def test_find_neighbors_is_the_true_k_closest_in_2000_random_tables() -> None:
    rng = random.Random(3)
    package_wrong = 0
    for _ in range(2000):
        ksize = rng.choice([2, 4, 8])
        local = PeerId(rng.randbytes(32))
        ours = Table(local, ksize, lambda _: None)
        for _ in range(rng.randrange(60)):
            ours.add_contact(PeerNode(PeerId(rng.randbytes(32))))
        target = Node(rng.randbytes(20))
        expected = brute_force(list(ours), target.long_id, ksize)
        assert [n.id for n in ours.find_neighbors(target)] == expected
        theirs = RoutingTable.find_neighbors(ours, target)
        package_wrong += [n.id for n in theirs] != expected
    assert package_wrong > 0  # the fault that the subclass is there to mend


@settings(max_examples=200, deadline=None)
@given(
    peers=st.sets(st.binary(min_size=32, max_size=32), max_size=50),
    target=st.binary(min_size=20, max_size=20),
    k=st.integers(1, 30),
)
def test_closest_agrees_with_brute_force(peers: set[bytes], target: bytes, k: int) -> None:
    ours = Table(peer_id(0), 4, lambda _: None)
    for raw in sorted(peers):
        ours.add_contact(PeerNode(PeerId(raw)))
    place = int.from_bytes(target, "big")
    assert [n.id for n in ours.closest(place, k)] == brute_force(list(ours), place, k)


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=120))
def test_a_contact_is_in_one_bucket_and_no_bucket_overflows(steps: list[tuple[int, bool]]) -> None:
    ours = Table(peer_id(0), 3, lambda _: None)
    for number, is_added in steps:
        node = PeerNode(peer_id(number))
        if is_added:
            ours.add_contact(node)
        else:
            ours.remove_contact(node)
    ids = [node.id for node in ours]
    assert len(ids) == len(set(ids)) == len(ours)
    for bucket in ours.buckets:
        assert len(bucket) <= 3
        assert all(bucket.has_in_range(node) for node in bucket.get_nodes())
    for node in ours:
        assert ours.find(node.peer) is node


def test_a_peer_is_not_its_own_contact() -> None:
    ours = table(0)
    ours.add_contact(PeerNode(peer_id(0)))
    assert len(ours) == 0


def test_the_asked_peer_and_the_target_are_left_out() -> None:
    ours = table(10)
    asked, target = PeerNode(peer_id(3)), PeerNode(peer_id(5))
    found = {node.peer for node in ours.find_neighbors(target, exclude=asked)}
    assert found == {peer_id(number) for number in range(1, 11)} - {peer_id(3), peer_id(5)}


def test_two_peers_behind_one_address_are_two_contacts() -> None:
    ours = table(0)
    for number in (1, 2):
        ours.add_contact(PeerNode(peer_id(number), ("10.0.0.1:4001",)))
    assert len(ours.find_neighbors(Node(bytes(20)), exclude=PeerNode(peer_id(1)))) == 1


def test_a_full_bucket_keeps_its_old_contacts_and_has_the_oldest_checked() -> None:
    checked: list[PeerNode] = []
    ours = Table(peer_id(0), 2, checked.append)
    for number in range(1, 200):
        ours.add_contact(PeerNode(peer_id(number)))
    assert checked
    full = next(bucket for bucket in ours.buckets if bucket.replacement_nodes)
    oldest, waiting = full.head(), next(reversed(full.replacement_nodes.values()))
    ours.remove_contact(oldest)
    assert ours.find(oldest.peer) is None
    assert ours.find(waiting.peer) is waiting


def test_the_same_peer_again_becomes_the_newest() -> None:
    ours = table(5)
    first = next(iter(ours))
    ours.add_contact(first)
    assert list(ours)[-1] is first
    assert len(ours) == 5


def test_only_buckets_without_a_look_up_for_long_are_stale() -> None:
    ours = table(200, ksize=4)
    assert len(ours.stale_places(now=100.0, age=10.0)) == len(ours.buckets)
    for place in ours.stale_places(now=100.0, age=10.0):
        ours.touch(place, 100.0)
    assert ours.stale_places(now=109.0, age=10.0) == []
    assert len(ours.stale_places(now=110.0, age=10.0)) == len(ours.buckets)


def test_a_split_bucket_stays_as_fresh_as_it_was() -> None:
    ours = Table(peer_id(0), 2, lambda _: None)
    ours.touch(0, 100.0)
    for number in range(1, 20):
        ours.add_contact(PeerNode(peer_id(number)))
    assert len(ours.buckets) > 1
    assert ours.stale_places(now=105.0, age=10.0) == []


@pytest.mark.parametrize("ksize", [1, 20])
def test_an_empty_table_finds_nobody(ksize: int) -> None:
    assert Table(peer_id(0), ksize, lambda _: None).find_neighbors(Node(bytes(20))) == []
