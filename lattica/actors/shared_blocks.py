"""Blocks that programs put and fetch through the API, apart from those that are the peer's own."""

from __future__ import annotations

import anyio

from lattica.errors import ActorsError, GetTimeoutError, StoreError
from lattica.rpc.buffers import Buffer
from lattica.store import Blocks
from lattica.store.blocks.manifest import to_hash


class SharedBlocks:
    """A peer's blocks, as far as programs and workers may use them."""

    def __init__(self, blocks: Blocks | None, *, limit: int) -> None:
        """`limit` bounds what is put or fetched at once, in bytes."""
        self._blocks = blocks
        self._limit = limit
        self._shared: set[str] = set()  # ids that came here through the API alone

    async def put(self, data: Buffer) -> str:
        """See `Core.put_blocks`."""
        blocks = self._open()
        self._check(len(data))
        own = set(blocks.manifests) - self._shared
        manifest_id = await blocks.add_bytes(data.data)
        if manifest_id not in own:
            self._shared.add(manifest_id)
        return manifest_id

    async def fetch(self, manifest_id: str, timeout: float | None) -> Buffer:
        """See `Core.fetch_blocks`."""
        blocks = self._open()
        is_new = manifest_id not in blocks.manifests
        try:
            with anyio.move_on_after(timeout):
                self._check((await blocks.manifest(manifest_id)).size)
                return Buffer(await blocks.fetch_bytes(manifest_id))
        finally:
            # Also when only a part of it came: the manifest is kept from its arrival on.
            if is_new and manifest_id in blocks.manifests:
                self._shared.add(manifest_id)
        raise GetTimeoutError(f"{manifest_id} was not here within {timeout:g} s")

    async def remove(self, manifest_id: str) -> None:
        """See `Core.remove_blocks`."""
        blocks = self._open()
        to_hash(manifest_id)
        if manifest_id in self._shared:
            self._shared.discard(manifest_id)
            await blocks.remove(manifest_id)
        elif manifest_id in blocks.manifests:
            raise StoreError(f"{manifest_id} is this peer's own; it was not put by a program")

    def _open(self) -> Blocks:
        if self._blocks is None:
            raise ActorsError("this peer keeps no blocks")
        return self._blocks

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise StoreError(f"{size} bytes at once are too many; the limit is {self._limit}")
