"""The conversation of a fetch with one peer: what it has, what it is asked for, what it gives."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from lattica.config import StoreConfig
from lattica.errors import BlockMissingError, BusyError, LatticaError, StoreError
from lattica.identity.keys import PeerId
from lattica.rpc import Buffer
from lattica.store.blocks.sets import mask_of
from lattica.store.swarm.messages import MAX_WANTED, Given, Have, Want
from lattica.store.swarm.picking import Picker
from lattica.store.swarm.providers import Providers
from lattica.store.swarm.service import BlocksService
from lattica.store.swarm.sharing import Share

MAX_BUSY = 50  # times a peer may say so before it is given up for this fetch
MAX_RETRY_AFTER = 2.0  # seconds
GUESS = 1.0  # seconds for a block, before anything is known
AHEAD = 0.2  # seconds of its rate that a peer is asked for ahead
MAX_NAMED = 256  # peers that one may name: those who invent some must not keep a fetch busy
SMOOTH = 0.3  # the share of the newest block in the rate


class Board(Protocol):
    """The fetch, as its conversations see it."""

    picker: Picker
    providers: Providers
    config: StoreConfig
    share: Share

    def meet(self, peer: PeerId) -> None: ...
    def nudge(self) -> None: ...
    def spare(self, idle: Asker) -> int | None: ...
    async def keep(self, number: int, data: memoryview, asker: Asker) -> None: ...


class Asker:
    """Asks one peer for blocks, as many ahead as its rate suggests."""

    def __init__(self, peer: PeerId, board: Board) -> None:
        self.peer = peer
        self._board = board
        self._have: int | None = None  # None until it has said so
        self._counted = 0  # of those, what makes blocks less rare
        self._given = 0  # what it gave to others, who will have it soon
        self._is_final = False
        self._asked: dict[int, None] = {}
        self._dropped: Counter[int] = Counter()  # times that it may come, though not asked for now
        self._named = 0  # peers, by this one
        self._rate = 0.0  # bytes/s
        self._scope = anyio.CancelScope()
        self._since = 0.0  # when it last gave something, or was first asked
        self._wants: MemoryObjectSendStream[Want] | None = None

    @property
    def patience(self) -> float:
        """Seconds that it may take for its next block."""
        return self._board.config.block_timeout * self._board.providers.patience(self.peer)

    @property
    def is_busy(self) -> bool:
        """Whether something is to come of it."""
        return self._have is None or bool(self._asked)

    @property
    def is_exhausted(self) -> bool:
        """Whether it has nothing that is wanted, and will not have. It may still know others."""
        have = self._have
        return have is not None and self._is_final and not self._board.picker.left & have

    def has_stalled(self) -> bool:
        """Whether it owes something for longer than it may."""
        return self.is_busy and anyio.current_time() - self._since > self.patience

    def stop(self) -> None:
        """End the conversation."""
        self._scope.cancel()

    async def run(self, reach: Callable[[PeerId], Awaitable[BlocksService]]) -> None:
        """Talk until nothing more can be had of it."""
        self._since = anyio.current_time()
        with self._scope:
            try:
                service = await reach(self.peer)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._patiently, self._follow, service)
                    tasks.start_soon(self._patiently, self._take, service)
            except LatticaError as error:
                self._board.providers.failed(self.peer, error)
            finally:
                self._board.picker.unseen(self._counted)
                self._board.picker.unseen(self._given)

    async def _patiently(
        self, talk: Callable[[BlocksService], Awaitable[None]], service: BlocksService
    ) -> None:
        """Errors end the conversation, but for those of a peer that is busy."""
        problems = self._board.providers
        try:
            for _ in range(MAX_BUSY):
                try:
                    await talk(service)
                    break
                except BusyError as error:
                    await anyio.sleep(min(max(error.retry_after, 0.05), MAX_RETRY_AFTER))
                    self._since = anyio.current_time()
        except BlockMissingError:
            problems.problems.setdefault(self.peer, "does not have it")
        except LatticaError as error:
            problems.failed(self.peer, error)
        self.stop()

    # ------------------------------------------------------------------- what it has

    async def _follow(self, service: BlocksService) -> None:
        async with aclosing(service.have(self._board.share.digest)) as stream:  # type: ignore[type-var]
            async for have in stream:
                self._heard(have)

    def _heard(self, have: Have) -> None:
        count = len(self._board.share.blocks)
        if any(number >= count for number in (*have.more, *have.given)):
            raise StoreError("it speaks of blocks that the manifest does not have")
        blocks = int.from_bytes(have.blocks, "little") | mask_of(have.more)
        if blocks >> count:
            raise StoreError("it has blocks that the manifest does not have")
        is_complete = blocks == (1 << count) - 1
        if self._have is None:
            self._since = anyio.current_time()
            self._have = 0
        if not (is_complete and not self._have):  # one that has all makes none of them less rare
            new = blocks & ~self._counted
            self._board.picker.seen(new)
            self._counted |= new
        given = mask_of(have.given)
        self._board.picker.seen(given & ~self._given)
        self._given |= given
        self._have |= blocks
        self._is_final = have.is_final
        for peer in have.peers[: MAX_NAMED - self._named]:
            self._board.meet(peer)
        self._named += min(len(have.peers), MAX_NAMED - self._named)
        self._board.nudge()

    # ------------------------------------------------------------------ what it gives

    def refill(self) -> None:
        """Ask for more, if there is something to ask it for."""
        if self._wants is None or self._have is None:
            return
        wanted: list[int] = []
        while len(self._asked) < self._window() and len(wanted) < MAX_WANTED:
            number = self._board.picker.choose(self.peer, self._have)
            if number is None and not self._asked:
                number = self._board.spare(self)
            if number is None:
                break
            if not self._asked:
                self._since = anyio.current_time()
            self._asked[number] = None
            wanted.append(number)
        if wanted:
            self._say(Want(tuple(wanted), ()))

    def _say(self, want: Want) -> None:
        # A call that has failed hears nothing any more; its error is on the way here.
        with contextlib.suppress(anyio.BrokenResourceError):
            if self._wants is not None:
                self._wants.send_nowait(want)

    def _window(self) -> int:
        """How many blocks it is asked for at a time."""
        if self._board.providers.has_stalled(self.peer):
            return 1
        ahead = 1 + int(AHEAD * self._rate / self._board.config.block)
        return max(2, min(ahead, self._board.config.per_provider))

    async def _take(self, service: BlocksService) -> None:
        send, receive = anyio.create_memory_object_stream[Want](math.inf)
        stream = service.give(self._board.share.digest, receive)
        with send, receive:
            try:
                self._wants = send
                self.refill()
                async with aclosing(stream):  # type: ignore[type-var]
                    async for given in stream:
                        if (data := self._got(given)) is not None:
                            await self._board.keep(given.block, data.data, self)
            finally:
                self._wants = None
                for number in self._asked:
                    self._board.picker.returned(number, self.peer)
                self._asked.clear()
                self._dropped.clear()

    def _got(self, given: Given) -> Buffer | None:
        """A block that is wanted, if it is one.

        Raises:
            StoreError: it was never asked for; else a peer could send what it likes for ever.
        """
        number, picker = given.block, self._board.picker
        if number not in self._asked:
            if not self._dropped[number]:
                raise StoreError("it gives blocks that it was not asked for")
            self._dropped[number] -= 1  # it was too late
            return None
        del self._asked[number]
        if given.data is None:
            picker.returned(number, self.peer)
            self._have = (self._have or 0) & ~(1 << number)
            self._board.nudge()
            return None
        now = anyio.current_time()
        rate = len(given.data) / max(now - self._since, 1e-6)
        self._rate = SMOOTH * rate + (1 - SMOOTH) * self._rate if self._rate else rate
        self._since = now
        self.refill()
        return given.data

    def has(self, number: int) -> bool:
        """Whether it has a block."""
        return bool((self._have or 0) >> number & 1)

    @property
    def owes(self) -> tuple[int, ...]:
        """What it was asked for, the one that it is giving first."""
        return tuple(self._asked)

    def takes(self, blocks: int) -> float:
        """Seconds until it has given so many, if it goes on as it did."""
        return blocks * self._board.config.block / self._rate if self._rate else GUESS * blocks

    def waited(self) -> float:
        """Seconds since it gave something, while it owes something."""
        return anyio.current_time() - self._since if self._asked else 0.0

    def drop(self, number: int) -> None:
        """Another peer gives a block that this one was asked for."""
        if self._wants is not None and number in self._asked:
            del self._asked[number]
            self._dropped[number] += 1
            self._say(Want((), (number,)))
