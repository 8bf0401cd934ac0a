"""The mesh's memory of who is where and who offers what: no server, signed records."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import anyio.abc
from msgspec.structs import astuple

from lattica.clock import Clock, SystemClock
from lattica.config import DhtConfig
from lattica.dht.claiming import Claims, Holding
from lattica.dht.handing_over import HandingOver
from lattica.dht.keys import KEY_BYTES, node_id
from lattica.dht.lease_keeper import LeaseKeeper
from lattica.dht.merge import Merge
from lattica.dht.messages import SERVICE, PeerAddresses, clean_addresses
from lattica.dht.neighbours import Neighbours
from lattica.dht.publisher import Publisher, require_replica
from lattica.dht.record_file import RecordFile
from lattica.dht.records import PEER, Check, Found, Kinds, Verifier
from lattica.dht.routing import PeerNode, Table
from lattica.dht.service import DhtService
from lattica.dht.storage import Kept, Storage
from lattica.dht.watching import Watchers
from lattica.errors import DhtError, LatticaError, RecordError
from lattica.identity.keys import Identity, PeerId
from lattica.identity.tickets import Contact
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
        self._serve = serve
        self._tasks: anyio.abc.TaskGroup | None = None
        self._reunited = self._clock.monotonic()
        self._was_alone = True
        self._said_where: tuple[str, ...] | None = None
        self.counters: Counter[str] = Counter()
        self.kinds = Kinds()
        self._verifier = Verifier(self.kinds, self._config)
        self.storage = Storage(self._verifier, self._config, self.counters)
        self.watchers = Watchers(self.storage, self._config)
        self._record_file = RecordFile(directory)
        self._saved = 0, float("-inf")  # the storage's version, and when
        self.neighbours = Neighbours(
            rpc,
            config=self._config,
            clock=self._clock,
            addresses=self._where,
            directory=directory,
            counters=self.counters,
        )
        self._keeper = LeaseKeeper(self._config, self._clock, directory, self.counters)
        self._claims = Claims(
            identity,
            self._keeper,
            self.neighbours.protocol,
            closest=self.neighbours.closest,
            serves=serve,
            config=self._config,
            clock=self._clock,
        )
        self._handing_over = HandingOver(
            rpc.local,
            self.storage,
            self.table,
            self.neighbours.protocol,
            config=self._config,
            clock=self._clock,
        )
        self._publisher = Publisher(
            identity,
            self.storage,
            self.kinds,
            self.neighbours.protocol,
            closest=self.neighbours.closest,
            config=self._config,
            clock=self._clock,
        )

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        self._load()
        self._keeper.load()
        if self._serve:
            self.serve()
        self.neighbours.start(self._tasks)
        self._tasks.start_soon(self._maintain)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self.neighbours.stop()
        if self._has_news():
            self._write(list(self.storage), self.storage.version)
        if self._serve:
            self._rpc.unregister(SERVICE)
        tasks, self._tasks = self._tasks, None
        assert tasks is not None
        tasks.cancel_scope.cancel()
        return await tasks.__aexit__(kind, error, traceback)

    def serve(self) -> None:
        """Answer others; part of entering the context of a peer that is no mere client."""
        service = DhtService(
            self.table,
            self.storage,
            addresses=self._where,
            seen=self.neighbours.seen,
            watchers=self.watchers,
            leases=self._keeper,
            config=self._config,
            clock=self._clock,
            counters=self.counters,
        )
        self._rpc.register(SERVICE, service)

    @property
    def local(self) -> PeerId:
        """This peer."""
        return self._identity.peer_id

    @property
    def table(self) -> Table:
        """The contacts of this peer."""
        return self.neighbours.table

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
        answered = await self.neighbours.join(entries)
        if self._serve:
            self._own_addresses()
        await self.republish()
        self.neighbours.save()
        return answered

    async def alive(self, peer: PeerId) -> bool:
        """Whether a peer answers now, or at least holds its link to us.

        One that just failed to is not asked again for some seconds, unless it links to us.
        """
        return peer == self.local or await self.neighbours.alive(peer)

    async def find_peer(self, peer: PeerId) -> Contact | None:
        """Where a peer can be dialled, by its own word where possible; links learn it."""
        if peer == self.local:
            return Contact(peer, self._where())
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
        return await self.neighbours.closest(_checked(key))

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

    async def leave(self) -> None:
        """Take back all that this peer said, and hand over what it keeps, before it goes.

        Best effort, within one query.
        """
        with anyio.move_on_after(self._config.query_timeout):
            self._said_where = None
            async with anyio.create_task_group() as goodbyes:
                if self._serve:
                    goodbyes.start_soon(self._handing_over.all)
                goodbyes.start_soon(self._claims.leave)
                for key, kind in self._publisher.owned():
                    goodbyes.start_soon(self.remove, key, kind)

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
        self, key: bytes, kind: str, type: type[T], *, every: float | None = None
    ) -> AsyncIterator[list[Found[T]]]:
        """`get` now, and again whenever an author or a value has come, changed or gone.

        Some of those who keep the records tell of changes at once. What they miss is seen
        by looking every `every` seconds, `DhtConfig.place_every` by default; a mere renewal of
        a record is no change.
        """
        last: dict[PeerId, T] | None = None
        digests: dict[PeerId, bytes] = {}
        while True:
            merge, nodes = await self._gather(key, kind)
            values = {record.author: record.value for record in merge.found(type)}
            if values != last:
                last = values
                yield merge.found(type)
            await self._until_changed(key, kind, nodes, digests, every or self._config.place_every)

    async def _until_changed(
        self,
        key: bytes,
        kind: str,
        nodes: list[PeerNode],
        digests: dict[PeerId, bytes],
        every: float,
    ) -> None:
        """Until one who keeps records of a key says that they are others, or this peer does.

        `digests` holds what each said last; who has not been asked yet answers at once.
        """

        left = len(nodes[: self._config.watches])

        async def ask(node: PeerNode) -> None:
            nonlocal left
            known = said = digests.get(node.peer, b"")
            while said == known:
                answer = await self.neighbours.protocol.call_watch(node, key, kind, known)
                if answer is None:
                    left -= 1
                    if left:
                        return
                    # Nobody tells any more, for they are gone or have too many to tell.
                    await anyio.sleep(self._config.watch_for)
                    break
                said = digests[node.peer] = answer
            waiting.cancel_scope.cancel()

        async def listen() -> None:
            now = self._clock.time()
            known = self.watchers.digest(key, kind, now)
            while await self.watchers.wait(self.local, key, kind, known, now) == known:
                pass
            waiting.cancel_scope.cancel()

        with anyio.move_on_after(every):
            async with anyio.create_task_group() as waiting:
                waiting.start_soon(listen)
                for node in nodes[: self._config.watches]:
                    waiting.start_soon(ask, node)

    # ------------------------------------------------------------- keys for one alone

    async def claim(self, key: bytes) -> Holding:
        """Have a key for this peer alone; run `keep` of what this returns.

        The peers closest to the key grant leases of it, and two thirds of them decide. Of peers
        that claim one key at once one gets it. In two halves of a cut network two may, until
        a lease after these have met again: then the one with fewer leases, or the younger, loses.

        Raises:
            NameTakenError: another holds it; the error says who.
            DhtError: too few of those who decide can be reached.
            RecordError: they find fault with the claim, such as with this peer's clock.
        """
        return await self._claims.claim(_checked(key))

    async def holder(self, key: bytes) -> PeerId | None:
        """Who holds a key, as more than half of those who decide say; None if nobody does."""
        return await self._claims.holder(_checked(key))

    # ----------------------------------------------------------------------- upkeep

    async def republish(self, *, only_due: bool = False) -> int:
        """Renew every record of this peer, or those it is time for; how many were taken."""
        moved = self._said_where not in (None, self._where())
        if moved:
            self._own_addresses()
        self._was_alone = not len(self.table)
        return await self._publisher.republish(only_due=only_due and not moved)

    def expire(self) -> int:
        """Forget expired records; how many."""
        return self.storage.expire(now=self._clock.time())

    async def maintain(self) -> None:
        """One round of upkeep: expiry, renewal, refresh, and a new start if all are lost."""
        self.expire()
        await self.neighbours.rejoin_if_alone()
        await self._reunite()
        # What was said while nobody was there to keep a copy is said again at once.
        await self.republish(only_due=not self._was_alone)
        await self.neighbours.refresh()
        if self._serve:
            await self._handing_over.orphans()
        self.neighbours.save()
        await self._save()

    async def _reunite(self) -> None:
        now = self._clock.monotonic()
        if self._reunited + self._config.reunite_every <= now:
            self._reunited = now
            if await self.neighbours.reunite():
                await self.republish()

    async def _maintain(self) -> None:
        while True:
            await anyio.sleep(self._config.maintain_every)
            try:
                await self.maintain()
            except (LatticaError, OSError) as error:
                self.counters[f"maintain:{type(error).__name__}"] += 1

    # --------------------------------------------------------------------- internals

    def _load(self) -> None:
        """What was kept in the last run; what has expired meanwhile is forgotten."""
        now = self._clock.time()
        for envelope, sponsor, root in map(astuple, self._record_file.load()):
            if envelope.author != self.local:  # that is said anew, or was taken back
                with contextlib.suppress(RecordError):
                    self.storage.store(envelope, now=now, sponsor=sponsor, root=root, restored=True)

    async def _save(self) -> None:
        now = self._clock.monotonic()
        if now - self._saved[1] >= self._config.save_every and self._has_news():
            self._saved = self.storage.version, now
            # A busy disk may take seconds, and others wait for answers meanwhile.
            await asyncio.to_thread(self._write, list(self.storage), self.storage.version)

    def _has_news(self) -> bool:
        return self._record_file.is_kept and self.storage.version != self._saved[0]

    def _write(self, records: Sequence[Kept], version: int) -> None:
        try:
            self._record_file.save(records, version)
        except OSError:
            self.counters["records_not_saved"] += 1

    async def _gather(self, key: bytes, kind: str) -> tuple[Merge, list[PeerNode]]:
        merge = Merge(_checked(key), kind, self._verifier, self._config, self.counters)
        now = self._clock.time()
        for kept in self.storage.get(key, kind, now=now):
            merge.add(kept.envelope, now=now)
        nodes = await self.neighbours.gather(
            key, kind, lambda data: merge.add_encoded(data, now=self._clock.time())
        )
        return merge, nodes

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
        self._said_where = self._where()
        self._publisher.own(node_id(self.local), PEER, PeerAddresses(self._said_where))

    def _where(self) -> tuple[str, ...]:
        return clean_addresses(self._addresses())


def _checked(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise RecordError(f"a key is {KEY_BYTES} bytes, not {len(key)}; make one with dht_key()")
    return key
