"""What `lattica blocks` asks of a store: in the peer that runs here, or in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio.to_thread

from lattica.cli.reports import BlocksReport, ManifestReport
from lattica.config import StoreConfig
from lattica.errors import BlockMissingError, ControlError
from lattica.store.blocks.blockstore import BlockStore
from lattica.store.blocks.manifest import to_hash, to_id
from lattica.store.blocks.sweeping import Held, Swept, Verified, listing, sweep, verify
from lattica.store.swarm.blocks import Blocks
from lattica.store.swarm.getting import Progress

Tell = Callable[[int, int], None]  # done and total, in bytes


class Offline:
    """A store where no peer runs: nobody can be asked, and nobody hears."""

    def __init__(self, store: BlockStore) -> None:
        self._store = store

    async def add(self, path: Path | str, progress: Progress | None = None) -> str:
        """See `Blocks.add`; the next peer that runs here announces it."""
        digest, _ = await anyio.to_thread.run_sync(
            self._store.add, Path(path), StoreConfig().block, lambda _: None
        )
        return to_id(digest)

    async def path(self, manifest_id: str, progress: Progress | None = None) -> Path:
        """See `Blocks.path`; nothing is fetched, and nothing keeps `collect` away."""
        digest = to_hash(manifest_id)

        def link() -> Path:
            return self._store.link(digest, self._store.whole(digest).files)

        return await anyio.to_thread.run_sync(link)

    async def listing(self) -> list[Held]:
        """See `Blocks.listing`."""
        return await anyio.to_thread.run_sync(listing, self._store)

    async def pin(self, manifest_id: str, *, pinned: bool = True) -> None:
        """See `Blocks.pin`."""
        self._store.pin(to_hash(manifest_id), pinned=pinned)

    async def collect(self, quota: int | None = None) -> Swept:
        """See `Blocks.collect`."""
        return await anyio.to_thread.run_sync(sweep, self._store, quota)

    async def verify(self, manifest_id: str | None = None) -> Verified:
        """See `Blocks.verify`."""
        digest = None if manifest_id is None else to_hash(manifest_id)
        return await anyio.to_thread.run_sync(verify, self._store, digest)


class BlockWork:
    """Does one thing after the other with blocks."""

    def __init__(self, blocks: Blocks | Offline) -> None:
        self._blocks = blocks

    async def __call__(
        self, op: str, manifest: str, path: str, quota: int | None, tell: Tell
    ) -> BlocksReport:
        """Do it.

        Raises:
            StoreError: see `Blocks`.
            ControlError: there is no such operation.
        """
        blocks = self._blocks
        if op == "add":
            made = await blocks.add(Path(path), lambda done, total, _: tell(done, total))
            return BlocksReport(manifests=await self._list(made))
        if op == "get" and isinstance(blocks, Blocks):
            await blocks.fetch(manifest, path, progress=lambda done, total, _: tell(done, total))
            report = blocks.report(manifest)
            assert report is not None
            return BlocksReport(
                manifests=await self._list(manifest),
                seconds=report.seconds,
                held=report.held,
                provided={peer.short: size for peer, size in report.provided.items()},
            )
        if op == "path":
            folder = await blocks.path(manifest, progress=lambda done, total, _: tell(done, total))
            return BlocksReport(manifests=await self._list(manifest), path=str(folder))
        if op == "ls":
            return BlocksReport(manifests=await self._list())
        if op in ("pin", "unpin"):
            await blocks.pin(manifest, pinned=op == "pin")
            return BlocksReport(manifests=await self._list(manifest))
        if op == "gc":
            swept = await blocks.collect(quota)
            return BlocksReport(
                manifests=await self._list(),
                gone=[to_id(each) for each in swept.manifests],
                files=swept.files,
                size=swept.size,
            )
        if op == "verify":
            found = await blocks.verify(manifest or None)
            return BlocksReport(
                blocks=found.blocks, size=found.size, damaged=found.damaged, missing=found.missing
            )
        raise ControlError(f"blocks has no operation {op!r}")

    async def _list(self, only: str = "") -> list[ManifestReport]:
        reports = [
            ManifestReport(
                id=to_id(held.digest),
                files=len(held.manifest.files),
                name=held.manifest.files[0].path if len(held.manifest.files) == 1 else "",
                size=held.manifest.size,
                here=held.here,
                is_pinned=held.is_pinned,
                used=held.used,
            )
            for held in await self._blocks.listing()
        ]
        chosen = [report for report in reports if only in ("", report.id)]
        if only and not chosen:
            raise BlockMissingError(f"{only} is not here")
        return chosen
