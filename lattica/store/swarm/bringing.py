"""What is not in a store is brought there: manifests, and the blocks of their files."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import anyio.to_thread

from lattica.config import StoreConfig
from lattica.dht import Dht
from lattica.errors import BlockMissingError
from lattica.identity.keys import PeerId
from lattica.rpc import Buffer, Rpc
from lattica.store.blocks.blockstore import BlockStore, Known
from lattica.store.blocks.manifest import FileEntry, Manifest, to_hash
from lattica.store.blocks.tree import name_of
from lattica.store.swarm.announcing import Announcer
from lattica.store.swarm.getting import FetchReport, Getting, Progress
from lattica.store.swarm.priorities import Part
from lattica.store.swarm.providers import Providers
from lattica.store.swarm.service import SERVICE, BlocksService
from lattica.store.swarm.sharing import Sharing
from lattica.store.swarm.source import Source

T = TypeVar("T")


class Bringing:
    """Fetches for one store."""

    def __init__(
        self,
        store: BlockStore,
        sharing: Sharing,
        rpc: Rpc,
        dht: Dht | None,
        config: StoreConfig,
        announcer: Announcer,
        manifests: dict[str, Manifest],
        *,
        banned: set[PeerId],
        counters: Counter[str],
    ) -> None:
        """`manifests` are those that are here; what is brought is added to them."""
        self.banned = banned
        self.counters = counters
        self.reports: dict[str, FetchReport] = {}
        self._store = store
        self._sharing = sharing
        self._rpc = rpc
        self._dht = dht
        self._config = config
        self._announcer = announcer
        self._manifests = manifests

    def source(self, manifest_id: str, named: Sequence[PeerId]) -> Source:
        """Where a manifest may be had: from those named and those that the DHT knows."""
        providers = Providers(self.banned, self.counters)
        return Source(manifest_id, named, self._rpc, self._dht, providers, self.counters)

    async def manifest(self, source: Source) -> Manifest:
        """The manifest, from here or from there. Who calls it is `using` it.

        Raises:
            BlockMissingError, BlockCorruptError, StoreError: see `Blocks.fetch`.
        """
        known = self._manifests.get(source.manifest_id)
        if known is None:
            here = await self._top(source)
            if (known := here.manifest) is None:
                assert here.tree is not None
                known = await self._joined(source, here.tree)
            self._manifests[source.manifest_id] = known
        return known

    async def _top(self, source: Source) -> Known:
        digest = to_hash(source.manifest_id)
        with contextlib.suppress(BlockMissingError):  # its parts may be all that is missing
            return await anyio.to_thread.run_sync(self._store.known, digest)
        return await source.top(self._store, self._read_manifest, self._config.max_manifest)

    async def _joined(self, source: Source, tree: FileEntry) -> Manifest:
        """A large manifest, whose parts come as the blocks of files do."""
        digest = to_hash(source.manifest_id)

        async def join() -> Manifest:
            return await anyio.to_thread.run_sync(self._store.whole, digest)

        return await self._getting(source, Manifest((tree,)), (tree,), name=name_of(tree)).run(join)

    async def _read_manifest(self, peer: PeerId, digest: bytes) -> Buffer:
        return await self.client(peer, self._config.block_timeout).manifest(digest)

    @contextlib.asynccontextmanager
    async def using(self, manifest_id: str) -> AsyncIterator[None]:
        """No process that shares the store deletes what is needed."""
        digest = to_hash(manifest_id)
        with contextlib.ExitStack() as claim:
            # In a thread, for it waits for a sweep that runs; later ones heed it.
            await anyio.to_thread.run_sync(claim.enter_context, self._store.claims.using(digest))
            if not await anyio.to_thread.run_sync(self._store.has_manifest, digest):
                self._manifests.pop(manifest_id, None)  # another process has swept it away
            self._store.touch(digest)
            yield
            if not self._store.is_unwanted(digest):
                self._store.touch(digest)

    async def fetch_and(
        self,
        use: Callable[[], Awaitable[T]],
        source: Source,
        files: Sequence[FileEntry],
        progress: Progress | None,
        first: Sequence[Part],
        *,
        copies: int,
    ) -> T:
        """Get `files`, of which so many `copies` need room, and `use` them.

        Raises:
            BlockMissingError, BlockCorruptError, StoreError: see `Blocks.fetch`.
        """
        manifest_id = source.manifest_id
        getting = self._getting(
            source,
            self._manifests[manifest_id],
            files,
            begun=partial(self._announcer.later, manifest_id),  # it may be had from here now
            progress=progress,
            first=first,
            copies=copies,
        )
        self.reports[manifest_id] = getting.report
        try:
            result = await getting.run(use)
        finally:
            self.counters["damaged"] += getting.damaged
        await self._announcer.now(manifest_id)
        return result

    def _getting(
        self,
        source: Source,
        manifest: Manifest,
        files: Sequence[FileEntry],
        *,
        begun: Callable[[], None] = lambda: None,
        progress: Progress | None = None,
        first: Sequence[Part] = (),
        copies: int = 1,
        name: bytes | None = None,
    ) -> Getting:
        return Getting(
            source,
            manifest,
            files,
            self._store,
            self._sharing,
            self._config,
            reach=partial(self._reach, source),
            begun=begun,
            progress=progress,
            first=first,
            copies=copies,
            name=name,
        )

    async def _reach(self, source: Source, peer: PeerId) -> BlocksService:
        await source.reach(peer)
        return self.client(peer, self._config.block_timeout)

    def client(self, peer: PeerId, timeout: float) -> BlocksService:
        """What another peer serves."""
        return self._rpc.client(peer, BlocksService, SERVICE, timeout=timeout)
