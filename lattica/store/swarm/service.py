"""Blocks towards other peers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import anyio
import anyio.abc
import anyio.to_thread
from anyio.streams.memory import MemoryObjectSendStream

from lattica.errors import BadArgumentsError, BlockMissingError, BusyError
from lattica.identity import grants
from lattica.rpc import Buffer, caller, method
from lattica.store.blocks.blockstore import BlockStore
from lattica.store.blocks.manifest import Hash
from lattica.store.swarm.messages import Given, Have, Want
from lattica.store.swarm.sharing import Share, Sharing

SERVICE = "blocks"
RETRY_AFTER = 0.2  # seconds
MAX_GIVING = 8  # times as many conversations as blocks are read at a time
MAX_OWED = 256  # blocks that one conversation may ask for ahead


class BlocksService:
    """Whoever knows a hash and holds the `call` grant may have the bytes."""

    def __init__(
        self, store: BlockStore, sharing: Sharing, tasks: anyio.abc.TaskGroup, *, parallel: int
    ) -> None:
        """`parallel`: reads from disk at a time. `tasks` listen to what peers want."""
        self._store = store
        self._sharing = sharing
        self._tasks = tasks
        self._room = anyio.CapacityLimiter(parallel)
        self._giving = 0
        self.served = 0  # bytes

    @method(scope=grants.CALL)
    async def manifest(self, digest: Hash) -> Buffer:
        """A manifest's bytes. Raises BlockMissingError."""
        data = await anyio.to_thread.run_sync(self._store.manifest, digest, limiter=self._room)
        return Buffer(data)

    @method(scope=grants.CALL)
    async def have(self, digest: Hash) -> AsyncIterator[Have]:
        """What is here of a manifest, and what comes. Raises BlockMissingError, BusyError."""
        async with self._sharing.open(digest) as share:
            with share.followed(caller().peer) as follower:
                while True:
                    yield await follower.next()

    @method(scope=grants.CALL)
    async def give(self, digest: Hash, wants: AsyncIterator[Want]) -> AsyncIterator[Given]:
        """Blocks of a manifest, one after the other. Raises BlockMissingError, BusyError."""
        if self._giving >= MAX_GIVING * self._room.total_tokens:
            raise BusyError("this peer serves as many as it can", retry_after=RETRY_AFTER)
        self._giving += 1
        try:
            async with self._sharing.open(digest) as share:
                owed = Owed(len(share.blocks))
                send, receive = anyio.create_memory_object_stream[Given](1)  # one is read ahead
                self._tasks.start_soon(self._feed, owed, share, send)
                self._tasks.start_soon(owed.listen, wants)
                try:
                    async for given in receive:
                        if given.data is not None:
                            share.gave(given.block, caller().peer)
                        yield given
                        self.served += 0 if given.data is None else len(given.data)
                    owed.check()
                finally:
                    owed.close()
                    receive.close()
        finally:
            self._giving -= 1

    async def _feed(self, owed: Owed, share: Share, send: MemoryObjectSendStream[Given]) -> None:
        with owed.scope(), send, contextlib.suppress(anyio.BrokenResourceError):
            while (number := await owed.next()) is not None:
                try:
                    data = Buffer(await self.block(share.blocks[number].hash))
                except BlockMissingError:
                    await send.send(Given(number, None))
                except Exception as error:  # noqa: BLE001 - told to the one who asked
                    owed.error = error
                    return
                else:
                    await send.send(Given(number, data))

    async def block(self, digest: bytes) -> bytes:
        """A block's bytes, verified. Raises BlockMissingError."""
        return await anyio.to_thread.run_sync(self._store.read, digest, limiter=self._room)


class Owed:
    """What one conversation has asked for and was not given."""

    def __init__(self, count: int) -> None:
        """`count`: blocks that there are."""
        self._count = count
        self._numbers: dict[int, None] = {}
        self._news = anyio.Event()
        self.error: Exception | None = None
        self._has_ended = False
        self._scopes: list[anyio.CancelScope] = []
        self._is_closed = False

    def scope(self) -> anyio.CancelScope:
        """A scope for what works for this conversation; `close` ends it."""
        scope = anyio.CancelScope()
        self._scopes.append(scope)
        if self._is_closed:
            scope.cancel()
        return scope

    async def listen(self, wants: AsyncIterator[Want]) -> None:
        """Hear what is wanted, until the other end has said all."""
        with self.scope():
            try:
                async for want in wants:
                    self._add(want)
            except Exception as error:  # noqa: BLE001 - raised again by `check`, in the handler
                self.error = error
            self._has_ended = True
            self._news.set()

    def _add(self, want: Want) -> None:
        for number in want.dropped:
            self._numbers.pop(number, None)
        self._numbers.update(dict.fromkeys(want.blocks))
        if len(self._numbers) > MAX_OWED or any(each >= self._count for each in want.blocks):
            raise BadArgumentsError(f"more than {MAX_OWED} blocks at a time, or no such block")
        self._news.set()

    async def next(self) -> int | None:
        """The next block to give, when there is one; None when no more are wanted."""
        while not self._numbers and not self._has_ended:
            self._news = anyio.Event()
            await self._news.wait()
        if self.error is not None or not self._numbers:
            return None
        number = next(iter(self._numbers))
        del self._numbers[number]
        return number

    def check(self) -> None:
        """Raises what went wrong while listening."""
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Nothing is wanted any more."""
        self._is_closed = True
        for scope in self._scopes:
            scope.cancel()
