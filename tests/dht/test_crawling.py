"""Look-ups: the true closest, no waiting for the slowest, no end by an exception."""

from __future__ import annotations

import asyncio
import random
from typing import NamedTuple

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kademlia.node import Node

from lattica.dht.crawling import Crawl, RecordCrawl
from lattica.dht.routing import PeerNode
from tests.dht.support import peer_id

pytestmark = pytest.mark.anyio

TARGET = Node(bytes(range(20)))


class Reply(NamedTuple):
    nodes: list[PeerNode]
    records: bytes = b""


class Network:
    """Peers that know some others, as a `CrawlProtocol`."""

    def __init__(self, knows: dict[int, list[int]]) -> None:
        self.nodes = {number: PeerNode(peer_id(number)) for number in knows}
        self._numbers = {node.id: number for number, node in self.nodes.items()}
        self.knows = knows
        self.asked: list[int] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.dead: set[int] = set()
        self.raising: set[int] = set()
        self.stuck: set[int] = set()

    async def call_find_node(self, node: PeerNode, target: Node) -> Reply | None:
        return await self.call_find_value(node, target, "")

    async def call_find_value(self, node: PeerNode, target: Node, kind: str) -> Reply | None:
        number = self._numbers[node.id]
        self.asked.append(number)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await anyio.lowlevel.checkpoint()
            if number in self.stuck:
                await anyio.Event().wait()
            if number in self.raising:
                raise RuntimeError("a bug in the protocol")
        finally:
            self.in_flight -= 1
        if number in self.dead:
            return None
        return Reply([self.nodes[n] for n in self.knows[number]], f"{kind}{number}".encode())

    def crawl(
        self,
        start: list[int],
        *,
        k: int = 4,
        slow_after: float = 60.0,
        alpha: int = 3,
        paths: int = 1,
    ) -> Crawl:
        return Crawl(
            self,
            TARGET,
            [self.nodes[number] for number in start],
            ksize=k,
            alpha=alpha,
            slow_after=slow_after,
            paths=paths,
        )

    def closest(self, k: int, without: set[int] = frozenset()) -> list[PeerNode]:  # type: ignore[assignment]
        alive = [node for number, node in self.nodes.items() if number not in without]
        return sorted(alive, key=TARGET.distance_to)[:k]


def ring(count: int, *, seed: int = 1) -> Network:
    """Everybody knows its neighbours in order of distance, and some others."""
    rng = random.Random(seed)
    order = sorted(range(count), key=lambda n: TARGET.distance_to(PeerNode(peer_id(n))))
    knows = {}
    for place, number in enumerate(order):
        near = order[max(0, place - 6) : place + 6]
        knows[number] = [n for n in {*near, *rng.sample(order, 3)} if n != number]
    return Network(knows)


async def test_a_look_up_finds_the_true_closest_of_the_network() -> None:
    network = ring(100)
    with anyio.fail_after(5):
        found = await network.crawl([0, 1]).find()
    assert found == network.closest(4)
    assert len(network.asked) == len(set(network.asked)) < 60


async def test_at_most_alpha_queries_are_in_progress() -> None:
    network = ring(50)
    with anyio.fail_after(5):
        await network.crawl([0]).find()
    assert network.most_in_flight == 3


async def test_dead_and_raising_peers_do_not_end_the_look_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = ring(60)
    nearest = [number for number, node in network.nodes.items() if node in network.closest(6)]
    network.dead, network.raising = set(nearest[:2]), set(nearest[2:4])
    with anyio.fail_after(5):
        found = await network.crawl([7, 8, 9]).find()
    assert found == network.closest(4, network.dead | network.raising)
    assert "goes on" in caplog.text


async def test_slow_peers_do_not_hold_up_a_look_up_that_has_enough_others() -> None:
    network = ring(60)
    nearest = [number for number, node in network.nodes.items() if node in network.closest(5)]
    network.stuck = set(nearest[:3])  # as many as alpha: rounds would wait for ever
    with anyio.fail_after(5):
        found = await network.crawl([7, 8, 9], slow_after=0.01).find()
    assert found == network.closest(4, network.stuck)
    assert network.in_flight == 0


async def test_with_too_few_others_a_slow_peer_is_waited_for() -> None:
    network = Network({0: [1], 1: [0]})
    network.stuck = {1}
    with anyio.move_on_after(0.1) as scope:
        await network.crawl([0], slow_after=0.01).find()
    assert scope.cancelled_caught


async def test_a_cancelled_look_up_still_tells_who_answered() -> None:
    network = Network({0: [1], 1: [0]})
    network.stuck = {1}
    crawl = network.crawl([0])
    with anyio.move_on_after(0.05):
        await crawl.find()
    assert crawl.closest() == [network.nodes[0]]
    assert network.in_flight == 0


async def test_a_look_up_from_nobody_finds_nobody() -> None:
    assert await Network({0: []}).crawl([]).find() == []


async def test_a_liar_steers_no_path_but_its_own() -> None:
    """It names those closest to the target, who know each other only: one path ends there."""
    order = sorted(range(40), key=lambda n: TARGET.distance_to(PeerNode(peer_id(n))))
    accomplices, honest = order[:4], order[4:]
    knows = {n: honest[max(0, place - 3) : place + 3] for place, n in enumerate(honest)}
    *_, liar, other = honest
    knows |= dict.fromkeys((liar, *accomplices), accomplices)
    for paths, reached in ((1, False), (2, True)):
        network = Network(knows)
        with anyio.fail_after(5):
            found = await network.crawl([liar, other], alpha=1, paths=paths).find()
        assert found == [network.nodes[number] for number in accomplices]
        assert set(honest[:4]).issubset(network.asked) is reached


async def test_paths_share_no_peer_and_find_what_one_path_does() -> None:
    network = ring(100)
    with anyio.fail_after(5):
        found = await network.crawl([7, 8, 9, 10], paths=3).find()
    assert found == network.closest(4)
    assert len(network.asked) == len(set(network.asked)) < 60


async def test_records_are_gathered_from_everybody_asked() -> None:
    network = ring(30)
    gathered: dict[bytes, bytes] = {}

    def collect(node: PeerNode, records: bytes | memoryview) -> None:
        gathered[node.id] = bytes(records)

    crawl = RecordCrawl(
        network,
        TARGET,
        [network.nodes[0]],
        kind="note",
        collect=collect,
        ksize=4,
        alpha=3,
        slow_after=60.0,
    )
    with anyio.fail_after(5):
        found = await crawl.find()
    assert {node.id for node in found} <= set(gathered)
    assert all(said.startswith(b"note") for said in gathered.values())


def sans_io(network: Network, k: int = 4) -> Crawl:
    return network.crawl(list(network.knows), k=k)


async def test_a_dead_peer_is_not_asked_again_when_others_name_it() -> None:
    network = Network({number: [] for number in range(6)})
    crawl = sans_io(network)
    first = crawl.next_query()
    assert first is not None
    crawl.failed(first)
    second = crawl.next_query()
    assert second is not None
    crawl.answered(second, [first])
    asked = []
    while (node := crawl.next_query()) is not None:
        asked.append(node)
        crawl.answered(node, [first])
    assert first not in asked
    assert crawl.done
    assert first not in crawl.closest()


async def test_a_late_answer_of_a_slow_peer_counts() -> None:
    network = Network({number: [] for number in range(3)})
    crawl = sans_io(network)
    late = crawl.next_query()
    assert late is not None
    crawl.slow(late)
    while (node := crawl.next_query()) is not None:
        crawl.answered(node, [])
    assert not crawl.done
    crawl.answered(late, [])
    assert crawl.done
    assert late in crawl.closest()


async def test_slow_queries_free_their_places() -> None:
    network = Network({number: [] for number in range(12)})
    crawl = sans_io(network, k=12)
    first = [crawl.next_query() for _ in range(3)]
    assert crawl.next_query() is None
    assert first[0] is not None
    crawl.slow(first[0])
    assert crawl.next_query() is not None
    assert crawl.next_query() is None


@settings(max_examples=150, deadline=None)
@given(
    knows=st.dictionaries(
        st.integers(0, 25), st.lists(st.integers(0, 25), max_size=6), min_size=1, max_size=26
    ),
    fates=st.lists(st.sampled_from(["answer", "fail", "slow"]), max_size=40),
)
def test_whatever_happens_a_look_up_ends_with_the_closest_that_answered(
    knows: dict[int, list[int]], fates: list[str]
) -> None:
    async def run() -> None:
        everyone = {
            number: [n for n in knows.get(number, []) if n != number] for number in range(26)
        }
        network = Network(everyone)
        start = sorted(knows)[:3]
        crawl = network.crawl(start)
        numbers = {node.id: number for number, node in network.nodes.items()}
        answered: set[bytes] = set()
        waiting: list[PeerNode] = []
        fate = iter(fates)
        for _ in range(200):
            if crawl.done:
                break
            node = crawl.next_query()
            what = next(fate, "answer")
            if node is None:
                node = waiting.pop(0)
                what = "answer" if what == "slow" else what
            if what == "slow":
                crawl.slow(node)
                waiting.append(node)
            elif what == "fail":
                crawl.failed(node)
            else:
                crawl.answered(node, [network.nodes[n] for n in everyone[numbers[node.id]]])
                answered.add(node.id)
        assert crawl.done
        expected = sorted(
            (node for node in network.nodes.values() if node.id in answered),
            key=TARGET.distance_to,
        )
        assert crawl.closest() == expected[:4]

    asyncio.run(run())
