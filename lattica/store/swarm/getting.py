"""The files of one call: as far as they are here from here, the rest from other peers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import anyio.from_thread
import anyio.to_thread
import msgspec

from lattica.config import StoreConfig
from lattica.errors import BlockMissingError, StoreError
from lattica.identity.keys import PeerId
from lattica.store.blocks.blockstore import BlockStore
from lattica.store.blocks.filling import Filling
from lattica.store.blocks.manifest import BlockRef, FileEntry, Manifest, to_hash
from lattica.store.blocks.sets import mask_of
from lattica.store.blocks.sweeping import verify
from lattica.store.swarm.fetching import Fetch, Reach
from lattica.store.swarm.picking import Picker
from lattica.store.swarm.priorities import Part, ranks_of
from lattica.store.swarm.sharing import Sharing
from lattica.store.swarm.source import Source

DISK_RESERVE = 64 * 1024 * 1024  # bytes left free
MAX_REPAIRS = 2  # fetches of what was found damaged; a disk that damages more is told

T = TypeVar("T")

Progress = Callable[[int, int, PeerId | None], None]  # done, total, who gave the last bytes


class FetchReport(msgspec.Struct):
    """Where the bytes of the last fetch of a manifest came from."""

    total: int = 0  # bytes wanted
    held: int = 0  # bytes that were here already
    provided: dict[PeerId, int] = {}  # bytes by provider
    seconds: float = 0.0


class Getting:
    """Some files of a manifest, for something that is to be done with them."""

    def __init__(
        self,
        source: Source,
        manifest: Manifest,
        files: Sequence[FileEntry],
        store: BlockStore,
        sharing: Sharing,
        config: StoreConfig,
        *,
        reach: Reach,
        begun: Callable[[], None],
        progress: Progress | None,
        first: Sequence[Part],
        copies: int,
        name: bytes | None = None,
    ) -> None:
        """`name` is what peers call what the files are of: the manifest's hash, if not another.

        `begun` is told when the first block has come; `copies` of the files need room."""
        self.report = FetchReport(total=sum(file.size for file in files))
        self.damaged = 0  # times that something was found damaged
        self._source = source
        self._digest = to_hash(source.manifest_id)
        self._name = name or self._digest
        self._manifest = manifest
        self._files = files
        self._store = store
        self._sharing = sharing
        self._config = config
        self._reach = reach
        self._begun = begun
        self._progress = progress
        self._first = first
        self._copies = copies

    async def run(self, use: Callable[[], Awaitable[T]]) -> T:
        """Get all blocks and `use` them, which may find some damaged on disk.

        Raises:
            BlockMissingError, BlockCorruptError, StoreError: see `Blocks.fetch`.
        """
        for _ in range(MAX_REPAIRS):
            await self._get()
            try:
                return await use()
            except BlockMissingError:
                self.damaged += 1
            # Reading has found the first of them; this finds the others.
            await anyio.to_thread.run_sync(verify, self._store, self._digest)
        await self._get()
        return await use()

    async def _get(self) -> None:
        filling = await anyio.to_thread.run_sync(self._store.fill, self._files, _tick)
        needed = filling.size + (self._copies - 1) * self.report.total
        free = await anyio.to_thread.run_sync(self._store.free)
        if needed > free - DISK_RESERVE:
            name = self._source.manifest_id
            raise StoreError(f"{name} needs {needed} bytes; the disk has {free}")
        await anyio.to_thread.run_sync(filling.copy, _tick)
        wanted = filling.wanted()
        self.report.held = self.report.total - sum(block.size for block in wanted)
        self.report.provided = {}
        self._tell(None)
        if wanted:
            await self._fetch(filling, wanted)
        await anyio.to_thread.run_sync(filling.complete)

    async def _fetch(self, filling: Filling, wanted: Sequence[BlockRef]) -> None:
        async with self._sharing.open(self._name) as share:
            ranks = ranks_of(self._manifest, share.numbers, self._first)
            numbers = mask_of(share.numbers[block.hash] for block in wanted)
            fetch = Fetch(
                self._source.manifest_id,
                filling,
                share,
                Picker(numbers, len(share.blocks), ranks=ranks),
                self._source.providers,
                self._config,
                reach=self._reach,
                find=self._source.find,
                look=partial(self._look, filling),
                arrived=self._arrived,
            )
            await fetch.run(await self._source.first())

    async def _look(self, filling: Filling) -> Sequence[BlockRef]:
        if not await anyio.to_thread.run_sync(self._store.claims.is_shared, self._digest):
            return ()
        return await anyio.to_thread.run_sync(filling.look)

    def _arrived(self, block: BlockRef, peer: PeerId | None) -> None:
        provided = self.report.provided
        if peer is None:
            self.report.held += block.size
            self._tell(None)
            return
        if not provided:
            self._begun()
        provided[peer] = provided.get(peer, 0) + block.size
        self._tell(peer)

    def _tell(self, peer: PeerId | None) -> None:
        if self._progress is not None:
            done = self.report.held + sum(self.report.provided.values())
            self._progress(done, self.report.total, peer)


def _tick(_: int) -> None:
    """Let work in a thread end when its task is cancelled."""
    anyio.from_thread.check_cancelled()
