"""`Blocks`: content-addressed files, added here, fetched from whoever has them."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import anyio
import anyio.abc
import anyio.from_thread
import anyio.to_thread

from lattica.config import StoreConfig
from lattica.dht import Dht
from lattica.errors import (
    BlockMissingError,
    StoreError,
)
from lattica.identity.keys import PeerId
from lattica.rpc import Rpc
from lattica.store.blocks.blockstore import BlockStore
from lattica.store.blocks.exporting import block_of
from lattica.store.blocks.intake import files_of
from lattica.store.blocks.manifest import (
    FileEntry,
    Manifest,
    to_hash,
    to_id,
)
from lattica.store.blocks.sweeping import Held, Swept, Verified, listing, sweep, verify
from lattica.store.swarm.announcing import Announcer
from lattica.store.swarm.bringing import Bringing
from lattica.store.swarm.getting import FetchReport, Progress
from lattica.store.swarm.priorities import Part
from lattica.store.swarm.service import SERVICE, BlocksService
from lattica.store.swarm.sharing import Sharing

T = TypeVar("T")


class Blocks:
    """A peer's blocks. An async context manager."""

    def __init__(
        self, directory: Path, rpc: Rpc, dht: Dht | None, config: StoreConfig | None = None
    ) -> None:
        """Kept in `directory`; without a `dht` providers must be named."""
        self.counters: Counter[str] = Counter()
        self.banned: set[PeerId] = set()  # providers that sent wrong bytes
        self._directory = directory
        self._rpc = rpc
        self._dht = dht
        self._config = config or StoreConfig()
        self._manifests: dict[str, Manifest] = {}
        self._announcer = Announcer(dht, self.size, self.counters)
        self._shown: dict[str, contextlib.ExitStack] = {}  # claims of `path`
        self._exporting = anyio.Lock()
        self._store: BlockStore
        self._tasks: anyio.abc.TaskGroup

    async def __aenter__(self) -> Self:
        """Open the directory and announce what is in it.

        Raises:
            StoreError: it cannot be used.
        """
        self._store = await anyio.to_thread.run_sync(BlockStore, self._directory)
        await anyio.to_thread.run_sync(self._load)
        self._sharing = Sharing(self._store)
        self._bringing = Bringing(
            self._store,
            self._sharing,
            self._rpc,
            self._dht,
            self._config,
            self._announcer,
            self._manifests,
            banned=self.banned,
            counters=self.counters,
        )
        self._tasks = await anyio.create_task_group().__aenter__()
        self._service = BlocksService(
            self._store, self._sharing, self._tasks, parallel=self._config.max_serving
        )
        self._rpc.register(SERVICE, self._service)
        self._tasks.start_soon(self._announcer.run)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._rpc.unregister(SERVICE)
        self._tasks.cancel_scope.cancel()
        for claim in self._shown.values():
            claim.close()
        self._shown.clear()
        return await self._tasks.__aexit__(kind, error, traceback)

    # ------------------------------------------------------------------------------ adding

    async def add(self, path: Path | str, progress: Progress | None = None) -> str:
        """Take a file or a folder in, announce it, and return its manifest's id.

        Hidden files are left out. The bytes are copied: the originals may change afterwards.

        Raises:
            StoreError: it cannot be read, changes meanwhile, or the disk is full.
        """
        done = 0

        def tick(size: int) -> None:
            nonlocal done
            done += size
            anyio.from_thread.check_cancelled()
            if progress is not None:
                anyio.from_thread.run_sync(progress, done, max(total, done), None)

        source = Path(path)
        total = await anyio.to_thread.run_sync(_size_of, source)
        digest, manifest = await anyio.to_thread.run_sync(
            self._store.add, source, self._config.block, tick
        )
        return await self._added(digest, manifest)

    async def add_bytes(self, data: bytes | memoryview) -> str:
        """Take bytes in, announce them, and return their manifest's id.

        Raises:
            StoreError: the disk is full.
        """
        digest, manifest = await anyio.to_thread.run_sync(
            self._store.add_bytes, data, self._config.block
        )
        return await self._added(digest, manifest)

    # ---------------------------------------------------------------------------- fetching

    async def fetch(
        self,
        manifest_id: str,
        dest: Path | str,
        files: Iterable[str] | None = None,
        progress: Progress | None = None,
        providers: Sequence[PeerId] = (),
        first: Sequence[Part] = (),
    ) -> Path:
        """Write the manifest's files (or those named) below the folder `dest`; returns it.

        Asks `providers` and those that the DHT names, several at once; blocks that are here
        are not asked for again, so an interrupted fetch goes on where it was. Each block is
        verified before it is kept, each file appears whole. Files, or `(path, start, end)` in
        bytes, that stand in `first` come before all others. This peer provides from its first
        block on.

        Raises:
            BlockMissingError: nobody has it; names the id and who was tried.
            BlockCorruptError: those who said they have it sent other bytes.
            StoreError: no such file in the manifest, no room on the disk.
        """
        started = time.monotonic()
        source = self._bringing.source(manifest_id, providers)
        async with self._bringing.using(manifest_id):
            manifest = await self._bringing.manifest(source)
            chosen = manifest.select(None if files is None else list(files))

            async def export() -> None:
                async with self._exporting:
                    await anyio.to_thread.run_sync(self._store.export, chosen, Path(dest))

            await self._bringing.fetch_and(export, source, chosen, progress, first, copies=2)
        report = self._bringing.reports[manifest_id]
        report.seconds = time.monotonic() - started
        return Path(dest)

    async def path(
        self,
        manifest_id: str,
        files: Iterable[str] | None = None,
        progress: Progress | None = None,
        providers: Sequence[PeerId] = (),
        first: Sequence[Part] = (),
    ) -> Path:
        """A folder with the manifest's files (or those named), without a second copy.

        What is not here is fetched as `fetch` does. The files are links to what the store
        keeps, so they are read-only and can be mapped into memory; `from_pretrained` and
        `safetensors` take the folder as it is. It stays until this `Blocks` is closed or the
        manifest removed: `collect` spares it, also of another process.

        Raises:
            BlockMissingError, BlockCorruptError, StoreError: see `fetch`.
        """
        source = self._bringing.source(manifest_id, providers)
        async with self._bringing.using(manifest_id):
            manifest = await self._bringing.manifest(source)
            chosen = manifest.select(None if files is None else list(files))

            async def link() -> Path:
                return await anyio.to_thread.run_sync(
                    self._store.link, to_hash(manifest_id), chosen
                )

            folder = await self._bringing.fetch_and(link, source, chosen, progress, first, copies=1)
            if manifest_id not in self._shown:
                self._shown[manifest_id] = claim = contextlib.ExitStack()
                using = self._store.claims.using(to_hash(manifest_id))
                await anyio.to_thread.run_sync(claim.enter_context, using)
        return folder

    async def fetch_bytes(
        self, manifest_id: str, providers: Sequence[PeerId] = (), progress: Progress | None = None
    ) -> bytes:
        """The bytes that `add_bytes` was given, or a single file's.

        Raises:
            StoreError: see `fetch`, or the manifest has several files.
        """
        source = self._bringing.source(manifest_id, providers)
        async with self._bringing.using(manifest_id):
            manifest = await self._bringing.manifest(source)
            if len(manifest.files) != 1:
                raise StoreError(f"{manifest_id} has {len(manifest.files)} files; use fetch()")
            content = self._store.content(manifest.files[0])

            async def join() -> bytes:
                return await anyio.to_thread.run_sync(
                    lambda: b"".join(block_of(content, at) for at in range(len(content.blocks)))
                )

            return await self._bringing.fetch_and(
                join, source, manifest.files, progress, (), copies=1
            )

    async def manifest(self, manifest_id: str, providers: Sequence[PeerId] = ()) -> Manifest:
        """The manifest behind an id, from here or from a provider.

        Raises:
            BlockMissingError, BlockCorruptError: see `fetch`.
        """
        async with self._bringing.using(manifest_id):
            return await self._bringing.manifest(self._bringing.source(manifest_id, providers))

    # ------------------------------------------------------------------------------ asking

    def has(self, manifest_id: str) -> bool:
        """Whether all its files are here."""
        manifest = self._manifests.get(manifest_id)
        return manifest is not None and all(self._is_whole(file) for file in manifest.files)

    def _is_whole(self, file: FileEntry) -> bool:
        content = self._store.content(file)
        content.refresh()
        return content.is_whole

    def size(self, manifest_id: str) -> int:
        """Bytes of all its files.

        Raises:
            BlockMissingError: the manifest is not here.
        """
        manifest = self._manifests.get(manifest_id)
        if manifest is None:
            raise BlockMissingError(f"{manifest_id} is not here")
        return manifest.size

    @property
    def manifests(self) -> tuple[str, ...]:
        """The ids of the manifests that are here, whole or in part."""
        return tuple(self._manifests)

    @property
    def served(self) -> int:
        """Bytes of blocks given to other peers since the start."""
        return self._service.served

    def report(self, manifest_id: str) -> FetchReport | None:
        """Where the bytes of the last fetch of a manifest came from."""
        return self._bringing.reports.get(manifest_id)

    async def listing(self) -> list[Held]:
        """What is here, whole or in part, most recently used first."""
        return await anyio.to_thread.run_sync(listing, self._store)

    async def pin(self, manifest_id: str, *, pinned: bool = True) -> None:
        """Keep it whatever room `collect` makes, or do so no more.

        Raises:
            BlockMissingError: it is not here.
        """
        digest = to_hash(manifest_id)
        await anyio.to_thread.run_sync(partial(self._store.pin, digest, pinned=pinned))

    async def collect(self, quota: int | None = None) -> Swept:
        """Delete the least recently used until what is kept is `quota` bytes.

        What is pinned, or used by any process, stays. With None only what no manifest
        names is deleted.
        """
        swept = await anyio.to_thread.run_sync(sweep, self._store, quota)
        for digest in swept.manifests:
            await self._forget(to_id(digest))
        return swept

    async def verify(self, manifest_id: str | None = None) -> Verified:
        """Read every block, or those of one manifest; what is damaged is fetched when asked for.

        Raises:
            BlockMissingError: the manifest is not here.
        """
        digest = None if manifest_id is None else to_hash(manifest_id)
        return await anyio.to_thread.run_sync(verify, self._store, digest)

    async def remove(self, manifest_id: str) -> None:
        """Provide it no more, and delete the files that no other manifest here has."""
        digest = to_hash(manifest_id)
        if (claim := self._shown.pop(manifest_id, None)) is not None:
            claim.close()
        await self._forget(manifest_id)
        await anyio.to_thread.run_sync(self._store.remove, digest)

    # --------------------------------------------------------------------------- internals

    async def _forget(self, manifest_id: str) -> None:
        self._manifests.pop(manifest_id, None)
        await self._announcer.forget(manifest_id)

    def _load(self) -> None:
        for digest in self._store.manifests():
            if self._store.is_unwanted(digest):
                continue
            try:
                manifest = self._store.known(digest).manifest
            except StoreError:
                self.counters["damaged_manifest"] += 1
                continue
            if manifest is None:
                continue
            manifest_id = to_id(digest)
            self._manifests[manifest_id] = manifest
            if any(self._store.content(file).here() for file in manifest.files):
                self._announcer.later(manifest_id)

    async def _added(self, digest: bytes, manifest: Manifest) -> str:
        manifest_id = to_id(digest)
        self._manifests[manifest_id] = manifest
        await self._announcer.now(manifest_id)
        return manifest_id


def _size_of(source: Path) -> int:
    return sum(path.stat().st_size for path, _ in files_of(source))
