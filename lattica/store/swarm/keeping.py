"""Blocks that have come are verified and written before more are taken from whoever gave them.

So a process that is killed has fetched nothing in vain but what was on its way.
"""

from __future__ import annotations

import time

import anyio
import anyio.to_thread

from lattica.config import MIB
from lattica.store.blocks.filling import Filling
from lattica.store.blocks.manifest import BlockRef

SLOW = 0.1  # seconds for a block: a disk that keeps the loop for longer is written to in threads
SYNC_EVERY = 32 * MIB  # so that the disk writes while more comes, and not all of it at the end
PROMOTING = 4  # threads that give whole files their names: each waits for the disk


class Keeper:
    """Writes what a fetch brings."""

    def __init__(self, filling: Filling) -> None:
        self._filling = filling
        self._is_slow = False
        self._promoting = 0
        self._unsynced = 0  # bytes
        self._is_syncing = False

    async def write(self, block: BlockRef, data: memoryview) -> None:
        """Verify a block and write it where it belongs.

        In the loop, for a disk takes a block into its cache sooner than a thread can be woken,
        and what waits for a thread is lost when the process is killed.

        Raises:
            BlockCorruptError: the bytes are others.
            StoreError: the disk does not take it.
        """
        self._unsynced += len(data)
        if self._is_slow:
            with anyio.CancelScope(shield=True):  # it is written, so it is to count as written
                await anyio.to_thread.run_sync(self._filling.write, block, data)
            return
        begun = time.perf_counter()  # what passes on a virtual clock too
        try:
            self._filling.write(block, data)
        finally:
            self._is_slow = time.perf_counter() - begun > SLOW

    @property
    def wants_to_sync(self) -> bool:
        """Whether `sync` is to be started."""
        return self._unsynced >= SYNC_EVERY and not self._is_syncing

    async def sync(self) -> None:
        """Let the disk write what has come, which who completes a file would else wait for.

        Raises:
            StoreError: the disk does not take it.
        """
        self._is_syncing, self._unsynced = True, 0
        try:
            await anyio.to_thread.run_sync(self._filling.sync)
        finally:
            self._is_syncing = False

    @property
    def is_promoting(self) -> bool:
        """Whether files are being given their names."""
        return self._promoting > 0

    @property
    def wants_to_promote(self) -> bool:
        """Whether `promote` is to be started once more."""
        return self._filling.has_full and self._promoting < PROMOTING

    async def promote(self) -> None:
        """Give files that have all their blocks their names, until no such file is left.

        Raises:
            StoreError: the disk does not take it.
        """
        self._promoting += 1
        try:
            await anyio.to_thread.run_sync(self._filling.promote)
        finally:
            self._promoting -= 1
