"""The `kademlia` package's look-ups, made continuous.

Which contact to ask next is decided without I/O (`next_query`, `answered`, `failed`,
`slow`, `done`); `_find` drives it with tasks. Changed against the package: an exception
ends one query and not the look-up, alpha queries are always in progress instead of rounds
that wait for their slowest, and a peer that did not answer is never among the results.
"""

from __future__ import annotations

import asyncio
import bisect
import heapq
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Protocol

import anyio
from kademlia.crawling import NodeSpiderCrawl
from kademlia.node import Node, NodeHeap

from lattica.dht.routing import PeerNode

log = logging.getLogger(__name__)


class Answer(Protocol):
    """What a query brings back."""

    @property
    def nodes(self) -> Sequence[PeerNode]:
        """The closest contacts the asked peer knows."""
        ...

    @property
    def records(self) -> bytes | memoryview:
        """The records it holds, encoded."""
        ...


class CrawlProtocol(Protocol):
    """Who carries queries out. None: no answer. Each call has its own deadline."""

    async def call_find_node(self, node: PeerNode, target: Node) -> Answer | None:
        """Ask `node` for the contacts closest to `target`."""
        ...

    async def call_find_value(self, node: PeerNode, target: Node, kind: str) -> Answer | None:
        """Ask `node` for contacts and for records of `kind` under `target`."""
        ...


class Nearest(NodeHeap):  # type: ignore[misc]  # kademlia has no types
    """The package's heap of contacts by distance, which looks through all of them for each push
    and sorts them for each look: half of a look-up's CPU time. Here it is sorted, as a heap may
    be, and knows them by their ids."""

    heap: list[tuple[int, PeerNode]]

    def __init__(self, node: Node, maxsize: int) -> None:
        super().__init__(node, maxsize)
        self._ids: set[bytes] = set()
        self.active = 0  # queries in progress

    def __contains__(self, node: Node) -> bool:
        return node.id in self._ids

    def push(self, nodes: Iterable[PeerNode]) -> None:
        """Take in those that are not here."""
        for node in nodes:
            if node.id not in self._ids:
                self._ids.add(node.id)
                bisect.insort(self.heap, (self.node.distance_to(node), node))

    def remove(self, peers: Iterable[bytes]) -> None:
        """Forget ids."""
        gone = self._ids.intersection(peers)
        if gone:
            self._ids -= gone
            self.heap = [entry for entry in self.heap if entry[1].id not in gone]

    def window(self, without: set[bytes]) -> list[PeerNode]:
        """The nearest, as many as the heap is for."""
        hopeful = (node for _, node in self.heap if node.id not in without)
        return list(islice(hopeful, self.maxsize))


class Crawl(NodeSpiderCrawl):  # type: ignore[misc]  # kademlia has no types
    """Finds the k live peers closest to a target, on several paths that share no peer.

    What a peer brings is followed on its own path only, so liars steer none but those that they
    are on (Baumgart and Mies, S/Kademlia, 2007, §4.4). Each path goes on until the k nearest
    that it knows have answered, to whichever path asked; the result is the nearest of all.
    """

    def __init__(
        self,
        protocol: CrawlProtocol,
        target: Node,
        peers: Iterable[PeerNode],
        *,
        ksize: int,
        alpha: int,
        slow_after: float,
        paths: int = 1,
    ) -> None:
        """`alpha` queries are in progress at a time, all paths together; one that is unanswered
        for `slow_after` seconds frees its place."""
        known = sorted(peers, key=target.distance_to)
        super().__init__(protocol, target, [], ksize, alpha)
        self._paths = [Nearest(target, ksize) for _ in range(max(1, min(paths, len(known))))]
        self.nearest = self._paths[0]
        for number, node in enumerate(known):
            self._paths[number % len(self._paths)].push([node])
        self._on: dict[bytes, Nearest] = {}  # the path that each peer was asked on
        self._slow_after = slow_after
        self._dead: set[bytes] = set()
        self._slow: set[bytes] = set()
        self._asking: set[bytes] = set()
        self._answered: set[bytes] = set()
        self._depth = dict.fromkeys((node.id for node in known), 1)
        self._progress = asyncio.Event()

    # ------------------------------------------------------------ what to do next, no I/O

    def next_query(self) -> PeerNode | None:
        """The contact to ask now; None while alpha are asked or none is left to ask."""
        if len(self._asking) - len(self._slow) >= self.alpha:
            return None
        for path in sorted(self._paths, key=_activity):
            for node in path.window(self._slow):
                if node.id not in self._on:
                    self._on[node.id] = path
                    self._asking.add(node.id)
                    path.active += 1
                    return node
        return None

    def answered(self, node: PeerNode, learned: Iterable[PeerNode]) -> None:
        """A query was answered with further contacts."""
        self._settle(node)
        self._answered.add(node.id)
        fresh = [other for other in learned if other.id not in self._dead]
        depth = self._depth.get(node.id, 1) + 1
        for other in fresh:
            self._depth.setdefault(other.id, depth)
        self._on[node.id].push(fresh)

    @property
    def rounds(self) -> int:
        """The longest chain of queries, each to a contact that the one before had brought."""
        return max((self._depth.get(each, 1) for each in self._answered), default=0)

    @property
    def queries(self) -> int:
        """Peers asked."""
        return len(self._on)

    def failed(self, node: PeerNode) -> None:
        """A query was not answered: the peer is out of this look-up."""
        self._settle(node)
        self._dead.add(node.id)
        for path in self._paths:
            path.remove([node.id])

    def slow(self, node: PeerNode) -> None:
        """A query takes long: go on without waiting for it, but take its answer if it comes."""
        if node.id in self._asking:
            self._slow.add(node.id)
            self._progress.set()

    @property
    def done(self) -> bool:
        """Whether the k closest of the live contacts have all answered, or none is left."""
        return all(map(self._is_done, self._paths))

    def closest(self) -> list[PeerNode]:
        """The closest peers that have answered, nearest first."""
        answered = {
            node.id: (distance, node)
            for path in self._paths
            for distance, node in path.heap
            if node.id in self._answered
        }
        return [node for _, node in heapq.nsmallest(self.ksize, answered.values())]

    def _is_done(self, path: Nearest) -> bool:
        window = path.window(self._slow)
        if any(node.id not in self._answered for node in window):
            return False
        return len(window) == self.ksize or not self._asking

    def _settle(self, node: PeerNode) -> None:
        if node.id in self._asking:
            self._asking.discard(node.id)
            self._on[node.id].active -= 1
        self._slow.discard(node.id)
        self._progress.set()

    # ------------------------------------------------------------------------ the driver

    async def _find(
        self, rpcmethod: Callable[[PeerNode, Node], Awaitable[Answer | None]]
    ) -> list[PeerNode]:
        async with anyio.create_task_group() as queries:
            while not self.done:
                while (node := self.next_query()) is not None:
                    queries.start_soon(self._query, rpcmethod, node)
                self._progress.clear()
                # No deadline here: each query has one, and the caller bounds the look-up.
                await self._progress.wait()
            queries.cancel_scope.cancel()
        return self.closest()

    async def _query(
        self, rpcmethod: Callable[[PeerNode, Node], Awaitable[Answer | None]], node: PeerNode
    ) -> None:
        timer = asyncio.get_running_loop().call_later(self._slow_after, self.slow, node)
        try:
            answer = await rpcmethod(node, self.node)
        except Exception:  # one peer's answer must not end the look-up
            log.warning("a query to %r raised; the look-up goes on", node, exc_info=True)
            answer = None
        finally:
            timer.cancel()
        if answer is None:
            self.failed(node)
        else:
            self._collect(node, answer)
            self.answered(node, answer.nodes)

    def _collect(self, node: PeerNode, answer: Answer) -> None:
        """What to do with an answer's records; a look-up for peers has no use for them."""


def _activity(path: Nearest) -> int:
    return path.active


class RecordCrawl(Crawl):
    """Gathers the records under a key from the k live peers closest to it."""

    def __init__(
        self,
        protocol: CrawlProtocol,
        target: Node,
        peers: Iterable[PeerNode],
        *,
        kind: str,
        collect: Callable[[PeerNode, bytes | memoryview], None],
        ksize: int,
        alpha: int,
        slow_after: float,
        paths: int = 1,
    ) -> None:
        """`collect(node, records)` is called with each answer's encoded records."""
        super().__init__(
            protocol,
            target,
            peers,
            ksize=ksize,
            alpha=alpha,
            slow_after=slow_after,
            paths=paths,
        )
        self._kind = kind
        self._collected = collect

    async def find(self) -> list[PeerNode]:
        """Ask for records on the way to the closest peers."""
        return await self._find(partial(self.protocol.call_find_value, kind=self._kind))

    def _collect(self, node: PeerNode, answer: Answer) -> None:
        self._collected(node, answer.records)
