"""Blocks towards other peers."""

from __future__ import annotations

import anyio
import anyio.to_thread

from lattica.errors import BusyError
from lattica.identity import grants
from lattica.rpc import Buffer, method
from lattica.store.blockstore import BlockStore
from lattica.store.manifest import Hash

SERVICE = "blocks"
RETRY_AFTER = 0.2  # seconds
QUEUE = 8  # times as many calls may wait as are served


class BlocksService:
    """Whoever knows a hash and holds the `call` grant may have the bytes."""

    def __init__(self, store: BlockStore, *, parallel: int) -> None:
        """`parallel`: reads from disk at a time."""
        self._store = store
        self._room = anyio.CapacityLimiter(parallel)
        self.served = 0  # bytes

    @method(scope=grants.CALL)
    async def manifest(self, digest: Hash) -> Buffer:
        """A manifest's bytes. Raises BlockMissingError, BusyError."""
        self._require_room()
        data = await anyio.to_thread.run_sync(self._store.manifest, digest, limiter=self._room)
        return Buffer(data)

    @method(scope=grants.CALL)
    async def read(self, digest: Hash) -> Buffer:
        """A block's bytes. Raises BlockMissingError, BusyError."""
        self._require_room()
        data = await anyio.to_thread.run_sync(self._store.read, digest, limiter=self._room)
        self.served += len(data)
        return Buffer(data)

    def _require_room(self) -> None:
        if self._room.statistics().tasks_waiting >= QUEUE * self._room.total_tokens:
            raise BusyError("this peer serves as many blocks as it can", retry_after=RETRY_AFTER)
