"""The mesh's memory of who is where and who offers what: no server, signed records."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import anyio.abc

from lattica.clock import Clock, SystemClock
from lattica.config import DhtConfig
from lattica.dht.archive import Archive
from lattica.dht.bequest import Bequest
from lattica.dht.claiming import Claims, Holding
from lattica.dht.finding import Finder
from lattica.dht.following import Follower
from lattica.dht.handing_over import HandingOver
from lattica.dht.keys import checked
from lattica.dht.lease_keeper import LeaseKeeper
from lattica.dht.messages import SERVICE, clean_addresses
from lattica.dht.neighbours import Neighbours
from lattica.dht.publisher import Publisher, require_replica
from lattica.dht.records import Check, Found, Kinds, Verifier
from lattica.dht.routing import PeerNode, Table
from lattica.dht.service import DhtService
from lattica.dht.storage import Storage
from lattica.dht.upkeep import Upkeep
from lattica.dht.watching import Watchers
from lattica.errors import DhtError
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
        self._config = config = config or DhtConfig()
        self._clock = clock = clock or SystemClock()
        self._addresses = addresses
        self._serve = serve
        self._tasks: anyio.abc.TaskGroup | None = None
        self.counters: Counter[str] = Counter()
        self.kinds = Kinds()
        verifier = Verifier(self.kinds, config)
        self.storage = Storage(verifier, config, self.counters)
        self.watchers = Watchers(self.storage, config)
        self._archive = Archive(
            self.storage, directory, config=config, clock=clock, counters=self.counters
        )
        self.neighbours = Neighbours(
            rpc,
            config=config,
            clock=clock,
            addresses=self._where,
            directory=directory,
            counters=self.counters,
        )
        protocol, closest = self.neighbours.protocol, self.neighbours.closest
        self._finder = Finder(
            rpc,
            self.storage,
            self.neighbours,
            verifier,
            config=config,
            clock=clock,
            counters=self.counters,
        )
        self._follower = Follower(
            rpc.local, self._finder, self.watchers, protocol, config=config, clock=clock
        )
        self._keeper = LeaseKeeper(config, clock, directory, self.counters)
        self._bequest = Bequest(self._keeper, self.table, config)
        self._claims = Claims(
            identity,
            self._keeper,
            protocol,
            closest=closest,
            serves=serve,
            config=config,
            clock=clock,
        )
        self._handing_over = HandingOver(
            rpc.local, self.storage, self.table, protocol, config=config, clock=clock
        )
        self._publisher = Publisher(
            identity,
            self.storage,
            self.kinds,
            protocol,
            closest=closest,
            config=config,
            clock=clock,
        )
        self._upkeep = Upkeep(
            rpc.local,
            self.storage,
            self._archive,
            self.neighbours,
            self._publisher,
            self._handing_over,
            where=self._where,
            serves=serve,
            config=config,
            clock=clock,
            counters=self.counters,
        )

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        self._archive.load(self.local)
        self._keeper.load()
        if self._serve:
            self.serve()
        self.neighbours.start(self._tasks)
        self._tasks.start_soon(self._upkeep.run)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self.neighbours.stop()
        self._archive.close()
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
            bequest=self._bequest,
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
            self._upkeep.say_where()
        await self.republish()
        self.neighbours.save()
        return answered

    async def alive(self, peer: PeerId) -> bool:
        """Whether a peer answers now, or at least holds its link to us.

        One that just failed to is not asked again for some seconds, unless it links to us.
        """
        return await self._finder.alive(peer)

    async def find_peer(self, peer: PeerId) -> Contact | None:
        """Where a peer can be dialled, by its own word where possible; links learn it."""
        if peer == self.local:
            return Contact(peer, self._where())
        return await self._finder.peer(peer)

    async def closest(self, key: bytes) -> list[PeerNode]:
        """The live peers closest to a key, nearest first; this one is not among them."""
        return await self.neighbours.closest(checked(key))

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
        envelope = self._publisher.disown(checked(key), kind)
        if envelope is None:
            return 0
        return (await self._publisher.replicate(key, envelope)).acknowledged

    async def leave(self) -> None:
        """Take back all that this peer said, and hand over what it keeps, before it goes.

        Best effort, within one query.
        """
        with anyio.move_on_after(self._config.query_timeout):
            self._upkeep.say_no_more()
            async with anyio.create_task_group() as goodbyes:
                if self._serve:
                    goodbyes.start_soon(self._handing_over.all)
                    goodbyes.start_soon(self._leave_leases)
                goodbyes.start_soon(self._claims.leave)
                for key, kind in self._publisher.owned():
                    goodbyes.start_soon(self.remove, key, kind)

    async def _leave_leases(self) -> None:
        await self._bequest.leave(self.neighbours.protocol.call_bequeath, but=self.local)

    async def get(
        self, key: bytes, kind: str, type: type[T], *, live: bool = False
    ) -> list[Found[T]]:
        """What all authors say under `key`, newest first: one verified record per author.

        With `live`, only of authors that answer now.
        """
        merge, _ = await self._finder.gather(key, kind)
        found = merge.found(type)
        return await self._finder.only_live(found) if live else found

    def watch(
        self, key: bytes, kind: str, type: type[T], *, every: float | None = None
    ) -> AsyncIterator[list[Found[T]]]:
        """`get` now, and again whenever an author or a value has come, changed or gone.

        Some of those who keep the records tell of changes at once. What they miss is seen
        by looking every `every` seconds, `DhtConfig.place_every` by default; a mere renewal of
        a record is no change.
        """
        return self._follower.follow(key, kind, type, every or self._config.place_every)

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
        return await self._claims.claim(checked(key))

    async def holder(self, key: bytes) -> PeerId | None:
        """Who holds a key, as more than half of those who decide say; None if nobody does."""
        return await self._claims.holder(checked(key))

    # ----------------------------------------------------------------------- upkeep

    async def republish(self, *, only_due: bool = False) -> int:
        """Renew every record of this peer, or those it is time for; how many were taken."""
        return await self._upkeep.republish(only_due=only_due)

    def expire(self) -> int:
        """Forget expired records; how many."""
        return self.storage.expire(now=self._clock.time())

    async def maintain(self) -> None:
        """One round of upkeep: expiry, renewal, refresh, and a new start if all are lost."""
        await self._upkeep.round()

    def _where(self) -> tuple[str, ...]:
        return clean_addresses(self._addresses())
