"""Commits envelopes from the event loop in a thread, many at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread

from lattica.errors import StoreError
from lattica.store.documents.database import Database, Entry

MAX_COMMIT = 4096  # entries in one commit, or what was added together

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Pending(NamedTuple):
    """What to commit, and whom to tell."""

    entries: tuple[Entry, ...]
    committed: Callable[[], None]


class Journal:
    """A queue in front of a `Database`; `run` empties it."""

    def __init__(self, database: Database, *, retry_every: float) -> None:
        """`retry_every`: seconds until a failed commit is tried again."""
        self._database = database
        self._retry_every = retry_every
        self._pending: deque[Pending] = deque()
        self._queued = 0
        self._committed = 0
        self._error: StoreError | None = None
        self._wake = anyio.Event()
        self._done = anyio.Event()  # set and replaced after every attempt
        self._thread = anyio.CapacityLimiter(1)

    def add(self, entries: Sequence[Entry], committed: Callable[[], None]) -> None:
        """Commit `entries` together and soon, then call `committed` on the event loop."""
        self._pending.append(Pending(tuple(entries), committed))
        self._queued += 1
        self._wake.set()

    async def flush(self) -> None:
        """Wait until everything added so far is safe on disk.

        Raises:
            StoreError: it could not be written; it will be tried again.
        """
        upto = self._queued
        while self._committed < upto:
            await self._done.wait()
            if self._error is not None:
                raise self._error

    async def run(self) -> None:
        """Commit for as long as the owner's task group lives."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            while self._pending:
                try:
                    await self.commit()
                except StoreError:
                    await anyio.sleep(self._retry_every)

    async def commit(self) -> None:
        """Commit one batch of what is pending.

        Raises:
            StoreError: nothing of it was written; it stays pending.
        """
        batch: list[Pending] = []
        entries: list[Entry] = []
        for pending in self._pending:
            if len(entries) >= MAX_COMMIT:
                break
            batch.append(pending)
            entries += pending.entries
        try:
            # Shielded: whether a commit took place must never be unknown.
            with anyio.CancelScope(shield=True):
                await self.in_thread(self._database.append, entries)
        except StoreError as error:
            self._error = error
            raise
        else:
            self._error = None
            for _ in batch:
                self._pending.popleft()
            self._committed += len(batch)
            for pending in batch:
                pending.committed()
        finally:
            self._done.set()
            self._done = anyio.Event()

    async def close(self) -> None:
        """Commit what is left and close the file."""
        with anyio.CancelScope(shield=True):
            try:
                while self._pending:
                    await self.commit()
            except StoreError:
                pass  # `flush` has told, or will tell, whoever wanted to know
            await self.in_thread(self._database.close)

    async def in_thread(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run a method of the database in the thread that may."""
        return await anyio.to_thread.run_sync(function, *args, limiter=self._thread)
