"""Getting the blocks of a manifest from several peers at once, also from such as still fetch it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import anyio
import anyio.abc

from lattica.config import StoreConfig
from lattica.errors import BlockCorruptError, DeadlineError, StoreError
from lattica.identity.keys import PeerId
from lattica.store.blocks.filling import Filling
from lattica.store.blocks.manifest import BlockRef
from lattica.store.swarm.asking import Asker
from lattica.store.swarm.keeping import Keeper
from lattica.store.swarm.picking import Picker
from lattica.store.swarm.providers import Providers
from lattica.store.swarm.service import BlocksService
from lattica.store.swarm.sharing import Share

LOOKS = 4  # at who has stalled, in a deadline's time
UNDER_WAY = 2  # blocks of those that a peer owes may be on the line already
LATE = 3.0  # times as long as expected: another peer is asked too
OFTEN = 0.5  # seconds between looks at who is late

Find = Callable[[], Awaitable[Sequence[PeerId]]]
Reach = Callable[[PeerId], Awaitable[BlocksService]]
Look = Callable[[], Awaitable[Sequence[BlockRef]]]
Arrived = Callable[[BlockRef, PeerId | None], None]  # None: another process of this machine


class Fetch:
    """One fetch: blocks that are wanted, a conversation with each peer that may have some."""

    def __init__(
        self,
        name: str,
        filling: Filling,
        share: Share,
        picker: Picker,
        providers: Providers,
        config: StoreConfig,
        *,
        reach: Reach,
        find: Find,
        look: Look,
        arrived: Arrived,
    ) -> None:
        """`name` is what errors call it; `find()` looks up who provides it.

        `look()` tells which blocks another process has written into the same files.
        """
        self.picker = picker
        self.providers = providers
        self.config = config
        self.share = share
        self._name = name
        self._keeper = Keeper(filling)
        self._reach = reach
        self._find = find
        self._look = look
        self._arrived = arrived
        self._disk_error: StoreError | None = None
        self._keeping = 0  # blocks that are being verified and written
        self._askers: dict[PeerId, Asker] = {}
        self._asked: set[PeerId] = set()
        self._waiting: list[PeerId] = []  # that were heard of while enough others were asked
        self._tasks: anyio.abc.TaskGroup | None = None

    async def run(self, first: Sequence[PeerId]) -> None:
        """Get every block, from `first`, those they name, and, where these do not do, those found.

        Raises:
            BlockMissingError: no provider has a block; names those tried.
            BlockCorruptError: those who said they have it sent other bytes.
            StoreError: the disk does not take it.
        """
        peers: Sequence[PeerId] = first
        with self.share.fetching(self.meet):
            while self.picker.left:
                fresh = [each for each in self.providers.usable(peers) if each not in self._asked]
                if not fresh and peers is not first:
                    fresh = self.providers.second_chance()
                    if not fresh:
                        for peer in self._asked:
                            lacks = "lacks some of its blocks"
                            self.providers.problems.setdefault(peer, lacks)
                        raise self.providers.error(self._name)
                    self._asked.difference_update(fresh)
                await self._round(fresh)
                if self._disk_error is not None:
                    raise self._disk_error
                if self.picker.left:
                    peers = await self._find()

    async def _round(self, peers: Sequence[PeerId]) -> None:
        async with anyio.create_task_group() as self._tasks:
            self._waiting = []
            for peer in peers:
                self.meet(peer)
            if self._askers:
                self._tasks.start_soon(self._watch)
        self._tasks = None

    def meet(self, peer: PeerId) -> None:
        """A peer may have some blocks."""
        if self._tasks is None or peer in self._asked or not self.providers.usable([peer]):
            return
        if len(self._askers) >= self.config.max_fetch_parallel:
            for asker in self._askers.values():
                if asker.is_exhausted:
                    asker.stop()
                    break
            if len(self._waiting) < self.config.max_fetch_parallel:
                self._waiting.append(peer)
            return
        self._asked.add(peer)
        asker = self._askers[peer] = Asker(peer, self)
        self._tasks.start_soon(self._ask, asker)

    async def _ask(self, asker: Asker) -> None:
        try:
            await asker.run(self._reach)
        finally:
            del self._askers[asker.peer]
            self.nudge()
            waiting, self._waiting = self._waiting, []
            for peer in waiting:
                self.meet(peer)  # or let it wait again
            self._end_if_over()

    def end(self) -> None:
        """Nobody is asked for anything more in this round."""
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def nudge(self) -> None:
        """There may be something to ask for."""
        for asker in list(self._askers.values()):
            asker.refill()

    def spare(self, idle: Asker) -> int | None:
        """A block for a peer that has none left which was asked of nobody.

        It takes over what waits its turn at another one that would be later. At the end it is
        asked as well for what another one should have given long ago.
        """
        others = [each for each in self._askers.values() if each is not idle and each.owes]
        for other in sorted(others, key=lambda each: -each.takes(len(each.owes))):
            if other.takes(len(other.owes)) <= idle.takes(1):
                break
            for number in reversed(other.owes[UNDER_WAY:]):
                if idle.has(number):
                    other.drop(number)
                    self.picker.returned(number, other.peer)
                    self.picker.ask(number, idle.peer)
                    return number
        for other in others:
            number = other.owes[0]
            is_late = other.waited() > LATE * max(other.takes(1), idle.takes(1))
            if is_late and idle.has(number) and self.picker.may_ask(number):
                self.picker.ask(number, idle.peer)
                return number
        return None

    async def keep(self, number: int, data: memoryview, asker: Asker) -> None:
        """Take in a block that a peer gave."""
        block, peer = self.share.blocks[number], asker.peer
        self._keeping += 1
        try:
            await self._keeper.write(block, data)
            self.providers.gave(peer)
            self._arrived_from(number, peer)
        except BlockCorruptError:
            self.providers.lied(peer)
            asker.stop()
        except StoreError as error:
            self._disk_failed(error)
        finally:
            self._keeping -= 1
            self.picker.returned(number, peer)  # unless it has arrived
            if self._keeper.wants_to_sync and self._tasks is not None:
                self._tasks.start_soon(self._on_disk, self._keeper.sync)
            if self._keeper.wants_to_promote and self._tasks is not None:
                self._tasks.start_soon(self._on_disk, self._keeper.promote)
            else:
                self._end_if_over()
            self.nudge()

    async def _on_disk(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except StoreError as error:
            self._disk_failed(error)
        self._end_if_over()

    def _disk_failed(self, error: StoreError) -> None:
        self._disk_error = error
        self.end()

    def _arrived_from(self, number: int, peer: PeerId | None) -> None:
        if not self.picker.left >> number & 1:
            return  # another peer was first
        for other in self.picker.arrived(number):
            if other != peer and other in self._askers:
                self._askers[other].drop(number)
        self.share.gained(number)
        self._arrived(self.share.blocks[number], peer)

    def _end_if_over(self) -> None:
        if self._keeper.is_promoting:
            return  # several files at a time, which only one would be after the fetch
        if not self.picker.left or not (self._askers or self._keeping):
            self.end()

    async def _watch(self) -> None:
        """Give up who stalls, and the round when nobody has anything to give."""
        over, idle, pause = 0, 0.0, min(OFTEN, self.config.block_timeout / LOOKS)
        while True:
            await anyio.sleep(pause)
            for block in await self._look():
                self._arrived_from(self.share.numbers[block.hash], None)
            self._end_if_over()  # before others are asked for anything
            self.nudge()
            askers = list(self._askers.values())
            for asker in askers:
                if asker.has_stalled():
                    error = DeadlineError(f"gave nothing for {asker.patience:g} s")
                    self.providers.stalled(asker.peer, error)
                    asker.stop()
            # Once more: one that has nothing may be about to name one that has.
            is_over = all(asker.is_exhausted for asker in askers) and not self._keeping
            over = over + 1 if is_over else 0
            is_idle = not any(asker.is_busy for asker in askers) and not self._keeping
            idle = idle + pause if is_idle else 0.0
            if over > 1 or idle > self.config.block_timeout:
                self.end()
