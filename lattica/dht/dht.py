"""The mesh's memory of who is where and who offers what: no server, signed records."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import anyio.abc
from kademlia.node import Node

from lattica.clock import Clock, SystemClock
from lattica.config import DhtConfig
from lattica.dht import contacts
from lattica.dht.crawling import Crawl, RecordCrawl
from lattica.dht.keys import KEY_BITS, KEY_BYTES, node_id
from lattica.dht.merge import Merge
from lattica.dht.messages import SERVICE, PeerAddresses, clean_addresses
from lattica.dht.protocol import DhtProtocol
from lattica.dht.publisher import Publisher, require_replica
from lattica.dht.records import PEER, Check, Found, Kinds, Verifier
from lattica.dht.routing import PeerNode, Table
from lattica.dht.service import DhtService
from lattica.dht.storage import Storage
from lattica.errors import DhtError, LatticaError, RecordError
from lattica.identity.keys import Identity, PeerId
from lattica.identity.tickets import Contact
from lattica.link.interface import Link
from lattica.rpc import Rpc

T = TypeVar("T")


class Dht:
    """One peer's part of the DHT. Use as an async context manager; then `bootstrap`."""

    def __init__(
        self,
        rpc: Rpc,
        identity: Identity,
        *,
        config: DhtConfig | None = None,
        clock: Clock | None = None,
        addresses: Callable[[], Sequence[str]] = tuple,
        directory: Path | None = None,
        serve: bool = True,
    ) -> None:
        """`addresses()` is where others can dial this peer; contacts are kept in `directory`.

        With `serve` off the peer is a client: it stores and finds, and is in nobody's table.
        """
        self._rpc = rpc
        self._identity = identity
        self._config = config or DhtConfig()
        self._clock = clock or SystemClock()
        self._addresses = addresses
        self._contacts = contacts.ContactFile(directory)
        self._serve = serve
        self._random = random.Random(identity.peer_id.raw)
        self._entries: dict[PeerId, Contact] = {}  # where to start again with an empty table
        self._probing: set[PeerId] = set()
        self._tasks: anyio.abc.TaskGroup | None = None
        self._republished = self._clock.monotonic()
        self.counters: Counter[str] = Counter()
        self.kinds = Kinds()
        verifier = Verifier(self.kinds, self._config)
        self._verifier = verifier
        self.storage = Storage(verifier, self._config)
        self.storage.counters = self.counters
        self.table = Table(identity.peer_id, self._config.k, self._check)
        self.protocol = DhtProtocol(
            rpc,
            self.table,
            addresses=addresses,
            config=self._config,
            clock=self._clock,
            counters=self.counters,
        )
        self._publisher = Publisher(
            identity,
            self.storage,
            self.kinds,
            self.protocol,
            closest=self.closest,
            config=self._config,
            clock=self._clock,
        )

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        if self._serve:
            service = DhtService(
                self.table,
                self.storage,
                addresses=self._addresses,
                seen=self._seen,
                config=self._config,
                clock=self._clock,
                counters=self.counters,
            )
            self._rpc.register(SERVICE, service)
        self._unsubscribe = self._rpc.links.subscribe(self._link_changed)
        self._tasks.start_soon(self._maintain)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._unsubscribe()
        if self._serve:
            self._rpc.unregister(SERVICE)
        tasks, self._tasks = self._tasks, None
        assert tasks is not None
        tasks.cancel_scope.cancel()
        self._save_contacts()
        return await tasks.__aexit__(kind, error, traceback)

    @property
    def local(self) -> PeerId:
        """This peer."""
        return self._identity.peer_id

    def register_kind(self, kind: str, value_type: Any, *, check: Check | None = None) -> None:
        """Accept records of `kind`; see `Kinds.register`. Do this before `bootstrap`."""
        self.kinds.register(kind, value_type, check=check)

    # ---------------------------------------------------------------------- the mesh

    async def bootstrap(self, entries: Sequence[Contact] = ()) -> int:
        """Join through `entries` and the contacts of the last run; how many peers answered.

        Looks this peer up, so that those close to it learn of it, and publishes its addresses.

        Raises:
            DhtError: `entries` were given and nobody answered; the cause is the first's error.
        """
        given = [entry for entry in entries if entry.peer != self.local]
        for entry in given:
            self._entries[entry.peer] = entry
        known = {contact.peer: contact for contact in self._contacts.load()}
        known.update(self._entries)
        known.pop(self.local, None)
        errors = await self._greet(list(known.values()))
        answered = sum(error is None for error in errors.values())
        if given and not answered:
            first = errors[given[0].peer]
            raise DhtError(
                f"none of {len(given)} contacts answered ({first}). Check that one of those "
                "peers is up and can be reached, or get a new ticket: lattica invite"
            ) from first
        if answered:
            await self.closest(node_id(self.local))
            await self.refresh()
        self._own_addresses()
        await self.republish()
        self._save_contacts()
        return answered

    async def alive(self, peer: PeerId) -> bool:
        """Whether a peer answers now. One that just failed to is not asked again for seconds."""
        if peer == self.local:
            return True
        if self.protocol.is_suspect(peer):
            return False
        return await self.protocol.call_ping(self.table.find(peer) or PeerNode(peer))

    async def find_peer(self, peer: PeerId) -> Contact | None:
        """Where a peer can be dialled, by its own word where possible; links learn it."""
        if peer == self.local:
            return Contact(peer, clean_addresses(self._addresses()))
        known = self.table.find(peer)
        if known is not None and self._rpc.links.find(peer) is not None:
            return known.contact
        merge, nodes = await self._gather(node_id(peer), PEER)
        said = [found.value for found in merge.found(PeerAddresses) if found.author == peer]
        addresses = clean_addresses(said[0].addresses) if said else ()
        if not addresses:
            heard = [node for node in nodes if node.peer == peer]
            if not heard and not said:
                return None
            addresses = heard[0].addresses if heard else ()
        if addresses:
            self._rpc.links.learn(peer, addresses)
        return Contact(peer, addresses)

    async def closest(self, key: bytes) -> list[PeerNode]:
        """The live peers closest to a key, nearest first; this one is not among them."""
        crawl = Crawl(
            self.protocol,
            Node(_checked(key)),
            self._entry_nodes(key),
            ksize=self._config.k,
            alpha=self._config.alpha,
            slow_after=self._config.slow_query,
        )
        return await self._run(crawl)

    # ----------------------------------------------------------------------- records

    async def put(self, key: bytes, kind: str, value: Any, ttl: float | None = None) -> int:
        """Say `value` under `key` until `remove`; how many other peers keep a copy.

        It is kept here too, lives `ttl` seconds after this peer is gone, and stands beside
        what other authors say under the key. The only peer of a mesh gets 0.

        Raises:
            RecordError: unknown kind, or a value that does not fit it or is too large.
            DhtError: there are other peers and none took it.
        """
        known = self._publisher.owns(key, kind)
        envelope = self._publisher.own(key, kind, value, ttl)
        done = await self._publisher.replicate(key, envelope)
        try:
            return require_replica(done)
        except DhtError:
            if not known:
                self._publisher.forget(key, kind)
            raise

    async def remove(self, key: bytes, kind: str) -> int:
        """Take back what this peer said; how many other peers know that it did."""
        envelope = self._publisher.disown(_checked(key), kind)
        if envelope is None:
            return 0
        return (await self._publisher.replicate(key, envelope)).acknowledged

    async def get(
        self, key: bytes, kind: str, type: type[T], *, live: bool = False
    ) -> list[Found[T]]:
        """What all authors say under `key`, newest first: one verified record per author.

        With `live`, only of authors that answer now.
        """
        merge, _ = await self._gather(key, kind)
        found = merge.found(type)
        return await self._only_live(found) if live else found

    async def watch(
        self, key: bytes, kind: str, type: type[T], *, every: float = 1.0
    ) -> AsyncIterator[list[Found[T]]]:
        """`get` now, and again whenever an author or a value has come, changed or gone.

        This polls every `every` seconds; a mere renewal of a record is no change.
        """
        last: dict[PeerId, T] | None = None
        while True:
            found = await self.get(key, kind, type)
            values = {record.author: record.value for record in found}
            if values != last:
                last = values
                yield found
            await anyio.sleep(every)

    # ----------------------------------------------------------------------- upkeep

    async def republish(self) -> int:
        """Renew every record of this peer; how many some other peer took."""
        self._republished = self._clock.monotonic()
        if self._publisher.owns(node_id(self.local), PEER):
            self._own_addresses()  # they may have changed since
        return await self._publisher.republish()

    def expire(self) -> int:
        """Forget expired records; how many."""
        return self.storage.expire(now=self._clock.time())

    async def refresh(self) -> int:
        """Look into each bucket that has seen no look-up for a while; how many."""
        places = self.table.stale_places(
            now=self._clock.monotonic(), age=self._config.refresh_every
        )
        for place in places:
            jitter = self._random.getrandbits(KEY_BITS // 2)  # not the same place every time
            await self.closest((place ^ jitter).to_bytes(KEY_BYTES, "big"))
        return len(places)

    async def maintain(self) -> None:
        """One round of upkeep: expiry, renewal, refresh, and a new start if all are lost."""
        self.expire()
        if not len(self.table) and (self._entries or self._contacts.load()):
            await self.bootstrap()
        if self._republished + self._config.republish_every <= self._clock.monotonic():
            await self.republish()
        await self.refresh()
        self._save_contacts()

    async def _maintain(self) -> None:
        while True:
            await anyio.sleep(self._config.maintain_every * self._random.uniform(0.8, 1.2))
            try:
                await self.maintain()
            except (LatticaError, OSError) as error:
                self.counters[f"maintain:{type(error).__name__}"] += 1

    # --------------------------------------------------------------------- internals

    async def _gather(self, key: bytes, kind: str) -> tuple[Merge, list[PeerNode]]:
        merge = Merge(_checked(key), kind, self._verifier, self._config, self.counters)
        now = self._clock.time()
        for kept in self.storage.get(key, kind, now=now):
            merge.add(kept.envelope, now=now)
        crawl = RecordCrawl(
            self.protocol,
            Node(key),
            self._entry_nodes(key),
            kind=kind,
            collect=lambda _, data: merge.add_encoded(data, now=self._clock.time()),
            ksize=self._config.k,
            alpha=self._config.alpha,
            slow_after=self._config.slow_query,
        )
        return merge, await self._run(crawl)

    async def _run(self, crawl: Crawl) -> list[PeerNode]:
        self.table.touch(crawl.node.long_id, self._clock.monotonic())
        with anyio.move_on_after(self._config.lookup_timeout) as scope:
            await crawl.find()
        if scope.cancelled_caught:
            self.counters["lookup_timeout"] += 1
        return crawl.closest()

    def _entry_nodes(self, key: bytes) -> list[PeerNode]:
        place = int.from_bytes(key, "big")
        return self.table.closest(place, self._config.k) or self.protocol.nodes_of(
            list(self._entries.values())
        )

    async def _greet(self, known: list[Contact]) -> dict[PeerId, LatticaError | None]:
        errors: dict[PeerId, LatticaError | None] = {}

        async def greet(node: PeerNode) -> None:
            errors[node.peer] = await self.protocol.try_ping(node)

        async with anyio.create_task_group() as greetings:
            for node in self.protocol.nodes_of(known):
                greetings.start_soon(greet, node)
        return errors

    async def _only_live(self, found: list[Found[T]]) -> list[Found[T]]:
        alive: set[PeerId] = set()

        async def ask(peer: PeerId) -> None:
            if await self.alive(peer):
                alive.add(peer)

        async with anyio.create_task_group() as pings:
            for record in found:
                pings.start_soon(ask, record.author)
        return [record for record in found if record.author in alive]

    def _own_addresses(self) -> None:
        if self._serve:
            here = PeerAddresses(clean_addresses(self._addresses()))
            self._publisher.own(node_id(self.local), PEER, here)

    def _seen(self, node: PeerNode) -> None:
        """A member of the mesh called: it enters the table once it answers us."""
        known = self.table.find(node.peer)
        if known is not None:
            known.addresses = node.addresses or known.addresses
            self.table.add_contact(known)
            return
        if node.addresses:
            self._rpc.links.learn(node.peer, node.addresses)
        self._check(node)

    def _check(self, node: PeerNode) -> None:
        """Ping a peer in the background: in the table if it answers, out of it if not."""
        if node.peer in self._probing:
            return
        if self._tasks is None or len(self._probing) >= self._config.max_probes:
            self.counters["dropped:probe"] += 1
            return
        self._probing.add(node.peer)
        self._tasks.start_soon(self._probe, node)

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
            self._check(node)

    def _save_contacts(self) -> None:
        try:
            self._contacts.save([node.contact for node in self.table])
        except OSError:
            self.counters["contacts_not_saved"] += 1


def _checked(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise RecordError(f"a key is {KEY_BYTES} bytes, not {len(key)}; make one with dht_key()")
    return key
