"""Getting the blocks of a manifest from several providers at once."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

import anyio
import anyio.abc
import anyio.to_thread

from lattica.config import StoreConfig
from lattica.errors import (
    BlockCorruptError,
    BlockMissingError,
    BusyError,
    DeadlineError,
    LatticaError,
    StoreError,
)
from lattica.identity.keys import PeerId
from lattica.rpc import Buffer
from lattica.store.filling import Filling
from lattica.store.manifest import BlockRef

MAX_PROVIDERS = 16  # asked in one round
MAX_BUSY = 50  # times a provider may say so before it is given up for this fetch
MAX_RETRY_AFTER = 2.0  # seconds
MAX_STALLS = 3  # deadlines a provider may miss, with nothing given between them

Read = Callable[[PeerId, bytes, float], Awaitable[Buffer]]  # the timeout comes last, in seconds
Find = Callable[[], Awaitable[Sequence[PeerId]]]
Arrived = Callable[[BlockRef, PeerId], None]


class Providers:
    """Whom to ask, and what became of it."""

    def __init__(self, banned: set[PeerId], counters: Counter[str]) -> None:
        """`banned` outlives the fetch: who sent wrong bytes once is not asked again."""
        self._banned = banned
        self._counters = counters
        self.problems: dict[PeerId, str] = {}  # those that are of no more use
        self._stalls: Counter[PeerId] = Counter()
        self._set_aside: dict[PeerId, str] = {}  # those that stalled in this round

    def usable(self, peers: Iterable[PeerId]) -> list[PeerId]:
        """Those worth asking that were not asked before."""
        fresh = []
        for peer in dict.fromkeys(peers):
            if peer in self._banned:
                self.problems.setdefault(peer, "sent wrong bytes before")
            elif peer not in self.problems:
                fresh.append(peer)
        return fresh

    def is_lost(self, peer: PeerId) -> bool:
        """Whether the provider is of no more use in this round."""
        return peer in self.problems or peer in self._set_aside

    def stalled(self, peer: PeerId, error: LatticaError) -> None:
        """It missed a deadline: set aside until nobody better is left.

        Asked for several blocks at once, a narrow link brings none of them in time, yet each
        of them alone. All that were under way count as one stall.
        """
        if self.is_lost(peer):
            return
        self._counters["provider_stalled"] += 1
        self._stalls[peer] += 1
        if self._stalls[peer] >= MAX_STALLS:
            self.failed(peer, error)
        else:
            self._set_aside[peer] = str(error)

    def gave(self, peer: PeerId) -> None:
        """It answered in time."""
        if self._stalls[peer]:
            self._stalls[peer] = 1  # it stays one that is asked with patience

    def has_stalled(self, peer: PeerId) -> bool:
        """Whether it is to be asked for one block at a time."""
        return self._stalls[peer] > 0

    def patience(self, peer: PeerId) -> int:
        """How many times the usual timeout it is given: doubled by each stall."""
        return 1 << self._stalls[peer]

    def second_chance(self) -> list[PeerId]:
        """Those set aside; from now on they are no longer."""
        peers = [peer for peer in self._set_aside if peer not in self.problems]
        self._set_aside.clear()
        return peers

    def failed(self, peer: PeerId, error: LatticaError) -> None:
        """It did not answer as a provider should."""
        self._counters["provider_failed"] += 1
        self.problems.setdefault(peer, str(error) or type(error).__name__)

    def lied(self, peer: PeerId) -> None:
        """It sent bytes that are not the block's."""
        self._banned.add(peer)
        self._counters["corrupt"] += 1
        self.problems[peer] = "sent wrong bytes"

    def error(self, what: str) -> StoreError:
        """Why `what` could not be had."""
        tried = "; ".join(f"{peer.short}: {text}" for peer, text in self.problems.items())
        if any(peer in self._banned for peer in self.problems):
            return BlockCorruptError(f"nobody gave the right bytes of {what}; tried {tried}")
        return BlockMissingError(f"no provider has {what}; tried {tried or 'none: no provider'}")


class Fetch:
    """One fetch: blocks that are wanted, workers that ask for them, one owner."""

    def __init__(
        self,
        name: str,
        filling: Filling,
        providers: Providers,
        config: StoreConfig,
        *,
        read: Read,
        find: Find,
        arrived: Arrived,
    ) -> None:
        """`name` is what errors call it; `find()` looks up who provides it."""
        self._name = name
        self._queue = deque(filling.wanted())
        self._pending = {block.hash for block in self._queue}
        self._disk_error: StoreError | None = None
        self._filling = filling
        self._providers = providers
        self._config = config
        self._read = read
        self._find = find
        self._arrived = arrived
        self._lacking: dict[PeerId, set[bytes]] = {}
        self._room = anyio.CapacityLimiter(config.max_fetch_parallel)
        self._news = anyio.Event()

    async def run(self, first: Sequence[PeerId]) -> None:
        """Get every block, from `first` and, where they do not do, from those found.

        Raises:
            BlockMissingError: no provider has a block; names those tried.
            BlockCorruptError: those who said they have it sent other bytes.
            StoreError: the disk does not take it.
        """
        asked: set[PeerId] = set()
        peers: Sequence[PeerId] = first
        while self._pending:
            fresh = [peer for peer in self._providers.usable(peers) if peer not in asked]
            fresh = fresh[:MAX_PROVIDERS]
            if not fresh and peers is not first:
                fresh = self._providers.second_chance()
                if not fresh:
                    for peer in asked:
                        self._providers.problems.setdefault(peer, "lacks some of its blocks")
                    raise self._providers.error(self._name)
            asked.update(fresh)
            async with anyio.create_task_group() as workers:
                for peer in fresh:
                    alone = self._providers.has_stalled(peer)
                    for _ in range(1 if alone else self._config.per_provider):
                        workers.start_soon(self._work, peer, workers.cancel_scope)
            if self._disk_error is not None:
                raise self._disk_error
            if self._pending:
                peers = await self._find()

    async def _work(self, peer: PeerId, fetch: anyio.CancelScope) -> None:
        lacking = self._lacking.setdefault(peer, set())
        while self._pending and not self._providers.is_lost(peer):
            block = self._next(lacking)
            if block is not None:
                try:
                    await self._get(peer, block, lacking)
                except StoreError as error:
                    self._disk_error = error
                    fetch.cancel()
            elif self._pending <= lacking:
                return
            else:
                await self._news.wait()  # another worker's block may come back to the queue

    def _next(self, lacking: set[bytes]) -> BlockRef | None:
        for _ in range(len(self._queue)):
            block = self._queue.popleft()
            if block.hash not in lacking:
                return block
            self._queue.append(block)
        return None

    async def _get(self, peer: PeerId, block: BlockRef, lacking: set[bytes]) -> None:
        """Ask for one block. Only our own disk's errors are raised."""
        async with self._room:
            data = await self._ask(peer, block, lacking)
            if data is not None:
                try:
                    await anyio.to_thread.run_sync(self._filling.write, block, data)
                except BlockCorruptError:
                    self._providers.lied(peer)
                    data = None
        if data is None:
            self._queue.append(block)
        else:
            self._pending.discard(block.hash)
            self._providers.gave(peer)
            self._arrived(block, peer)
        self._news.set()
        self._news = anyio.Event()

    async def _ask(self, peer: PeerId, block: BlockRef, lacking: set[bytes]) -> memoryview | None:
        timeout = self._config.block_timeout * self._providers.patience(peer)
        for _ in range(MAX_BUSY):
            try:
                return (await self._read(peer, block.hash, timeout)).data
            except BlockMissingError:
                lacking.add(block.hash)
                return None
            except BusyError as error:
                await anyio.sleep(min(max(error.retry_after, 0.05), MAX_RETRY_AFTER))
            except DeadlineError as error:
                self._providers.stalled(peer, error)
                return None
            except LatticaError as error:
                self._providers.failed(peer, error)
                return None
        self._providers.failed(peer, DeadlineError("busy for too long"))
        return None
