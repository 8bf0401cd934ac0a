"""The peers that this one knows: who enters the table, who leaves it, look-ups through it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import anyio.abc
from kademlia.node import Node

from lattica.clock import Clock
from lattica.config import DhtConfig
from lattica.dht.contacts import ContactFile
from lattica.dht.crawling import Crawl, RecordCrawl
from lattica.dht.keys import KEY_BITS, KEY_BYTES, node_id
from lattica.dht.knowing import Knowing
from lattica.dht.protocol import DhtProtocol
from lattica.dht.routing import PeerNode, Table
from lattica.errors import DhtError, LatticaError
from lattica.identity.keys import PeerId
from lattica.identity.tickets import Contact
from lattica.link.interface import Link
from lattica.rpc import Rpc

REUNITE_AT_ONCE = 4  # lost peers tried in one round


class Neighbours:
    """Keeps the routing table true. Its background pings belong to the task group given."""

    def __init__(
        self,
        rpc: Rpc,
        *,
        config: DhtConfig,
        clock: Clock,
        addresses: Callable[[], tuple[str, ...]],
        directory: Path | None,
        counters: Counter[str],
    ) -> None:
        self._rpc = rpc
        self._config = config
        self._clock = clock
        self._counters = counters
        self._contacts = ContactFile(directory)
        self._random = random.Random(rpc.local.raw)
        self._entries: dict[PeerId, Contact] = {}  # where this peer was told to start
        self._probing: set[PeerId] = set()
        self._tasks: anyio.abc.TaskGroup | None = None
        self.table = Table(rpc.local, config.k, self._doubt)
        self.protocol = DhtProtocol(
            rpc,
            self.table,
            addresses=addresses,
            config=config,
            clock=clock,
            counters=counters,
        )

    def start(self, tasks: anyio.abc.TaskGroup) -> None:
        """Follow the links; ping in tasks of `tasks`."""
        self._tasks = tasks
        self._unsubscribe = self._rpc.links.subscribe(self._link_changed)

    def stop(self) -> None:
        """Follow no more; keep the contacts for the next run."""
        self._tasks = None
        self._unsubscribe()
        self.save()

    # ------------------------------------------------------------------------ joining

    async def join(self, entries: Sequence[Contact]) -> int:
        """Greet `entries` and the contacts of before, then look around; how many answered.

        Raises:
            DhtError: `entries` were given and nobody answered; the cause is the first's error.
        """
        given = [entry for entry in entries if entry.peer != self._rpc.local]
        self._entries.update({entry.peer: entry for entry in given})
        known = {contact.peer: contact for contact in self._contacts.load()} | self._entries
        known.pop(self._rpc.local, None)
        errors = await self._greet(list(known.values()))
        answered = sum(error is None for error in errors.values())
        if given and not answered:
            first = errors[given[0].peer]
            raise DhtError(
                f"none of {len(given)} contacts answered ({first}). Check that one of those "
                "peers is up and can be reached, or get a new ticket: lattica invite"
            ) from first
        if answered:
            await self._look_around()
        return answered

    async def rejoin_if_alone(self) -> None:
        """Start again from the entries and the contacts on disk if the table is empty."""
        if not len(self.table) and (self._entries or self._contacts.load()):
            await self.join(())

    async def reunite(self) -> int:
        """Try a few peers that were lost; how many are back.

        Without this the two halves of a mesh whose network was cut would never meet again.
        """
        lost = [*self.protocol.lost.values()]
        lost += [entry for entry in self._entries.values() if self.table.find(entry.peer) is None]
        tried = {contact.peer: contact for contact in lost}
        chosen = self._random.sample(list(tried.values()), min(REUNITE_AT_ONCE, len(tried)))
        errors = await self._greet(chosen)
        back = sum(error is None for error in errors.values())
        if back:
            await self._look_around()
        return back

    async def _greet(self, contacts: list[Contact]) -> dict[PeerId, LatticaError | None]:
        errors: dict[PeerId, LatticaError | None] = {}
        patience = self._config.greet_timeout

        async def greet(node: PeerNode) -> None:
            errors[node.peer] = await self.protocol.try_ping(node, timeout=patience)

        async with anyio.create_task_group() as greetings:
            for node in self.protocol.nodes_of(contacts):
                greetings.start_soon(greet, node)
        return errors

    async def _look_around(self) -> None:
        # Looking itself up makes a peer known to those closest to it (Kademlia paper §2.3).
        await self.closest(node_id(self._rpc.local))
        for place in self._stale_places():
            await self.closest(place)

    # ----------------------------------------------------------------------- look-ups

    async def closest(self, key: bytes) -> list[PeerNode]:
        """The live peers closest to a key, nearest first."""
        start = self._start(key)
        crawl = Crawl(
            Knowing(self.protocol, start),
            Node(key),
            start,
            ksize=self._config.k,
            alpha=self._config.alpha,
            slow_after=self._config.slow_query,
            paths=self._config.paths,
        )
        return await self._run(crawl)

    async def gather(
        self,
        key: bytes,
        kind: str,
        collect: Callable[[bytes | memoryview], None],
        held: Callable[[], bytes],
    ) -> list[PeerNode]:
        """Like `closest`; `collect` gets the encoded records of everybody asked on the way.

        But for those whose digest is `held()` by then; see `knowing`.
        """
        start = self._start(key)
        crawl = RecordCrawl(
            Knowing(self.protocol, start, held),
            Node(key),
            start,
            kind=kind,
            collect=lambda _, records: collect(records),
            ksize=self._config.k,
            alpha=self._config.alpha,
            slow_after=self._config.slow_query,
            paths=self._config.paths,
        )
        return await self._run(crawl)

    async def refresh(self) -> int:
        """Ask into each bucket that has seen no look-up for a while; how many.

        One peer is asked and its news are pinged: a look-up (Kademlia paper §2.3) would be
        thirty queries, and in a mesh that lives on, most of what it finds is known.
        """
        places = self._stale_places()
        for key in places:
            where = int.from_bytes(key, "big")
            self.table.touch(where, self._clock.monotonic())
            for node in self.table.closest(where, self._config.alpha):
                answer = await self.protocol.call_find_node(node, Node(key))
                if answer is not None:
                    self._try(answer.nodes)
                    break
        return len(places)

    def _try(self, nodes: Sequence[PeerNode]) -> None:
        """Ping peers that are not in the table, as many as there is room for."""
        tried: Counter[int] = Counter()  # by bucket
        for node in nodes:
            bucket = self.table.get_bucket_for(node)
            if self.table.has_room_for(node, beside=tried[bucket]):
                tried[bucket] += 1
                self.check(node)

    def _stale_places(self) -> list[bytes]:
        """A place in each bucket that has seen no look-up for a while, not the same every time."""
        places = self.table.stale_places(
            now=self._clock.monotonic(), age=self._config.refresh_every
        )
        return [
            (place ^ self._random.getrandbits(KEY_BITS // 2)).to_bytes(KEY_BYTES, "big")
            for place in places
        ]

    async def _run(self, crawl: Crawl) -> list[PeerNode]:
        self.table.touch(crawl.node.long_id, self._clock.monotonic())
        with anyio.move_on_after(self._config.lookup_timeout) as scope:
            await crawl.find()
        if scope.cancelled_caught:
            self._counters["lookup_timeout"] += 1
        self._counters["lookups"] += 1
        self._counters["lookup_queries"] += crawl.queries
        self._counters["lookup_rounds"] += crawl.rounds
        return crawl.closest()

    def _start(self, key: bytes) -> list[PeerNode]:
        known = self.table.closest(int.from_bytes(key, "big"), self._config.k)
        return known or self.protocol.nodes_of(list(self._entries.values()))

    # ------------------------------------------------------------------- who is there

    async def alive(self, peer: PeerId) -> bool:
        """Whether a peer answers now, if only to refuse; see `Dht.alive`."""
        if self.protocol.is_suspect(peer) and peer not in self._probing:
            return False
        if await self.protocol.call_ping(self.table.find(peer) or PeerNode(peer)):
            return True
        # Links have heartbeats: they show life even if this service is not there.
        return self.protocol.is_heard(peer)

    def seen(self, node: PeerNode) -> None:
        """A member of the mesh called: it enters the table once it answers us."""
        known = self.table.find(node.peer)
        if known is not None:
            known.addresses = node.addresses or known.addresses
            known.heard = self._clock.monotonic()
            self.table.add_contact(known)
            return
        oldest = self.table.full_bucket_of(node)
        if oldest is not None:  # there is no place for it, so it need not prove that it answers
            self._doubt(oldest)
            return
        if node.addresses:
            self._rpc.links.learn(node.peer, node.addresses)
        self.check(node)

    def _doubt(self, oldest: PeerNode) -> None:
        """A bucket is full: its oldest contact makes room for others if it no longer answers."""
        if oldest.heard + self._config.doubt_after <= self._clock.monotonic():
            self.check(oldest)

    def check(self, node: PeerNode) -> None:
        """Ping a peer in the background: in the table if it answers, out of it if not."""
        if node.peer in self._probing:
            return
        if self._tasks is None or len(self._probing) >= self._config.max_probes:
            self._counters["dropped:probe"] += 1
            return
        self._probing.add(node.peer)
        self._tasks.start_soon(self._probe, node)

    @property
    def probing(self) -> int:
        """Pings in progress in the background."""
        return len(self._probing)

    def save(self) -> None:
        """Keep the contacts for the next run."""
        if not self._contacts.is_kept:
            return
        try:
            self._contacts.save([node.contact for node in self.table])
        except OSError:
            self._counters["contacts_not_saved"] += 1

    async def _probe(self, node: PeerNode) -> None:
        try:
            await self.protocol.call_ping(node)
        finally:
            self._probing.discard(node.peer)

    def _link_changed(self, link: Link, is_up: bool) -> None:
        peer = link.remote.peer
        if is_up:
            self.protocol.trust(peer)
        elif (node := self.table.find(peer)) is not None:
            self.protocol.suspect(peer)  # look-ups need not wait for the outcome of the ping
            self.check(node)
