"""The core of a peer: owns objects, submits work, supervises its actors."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Self

import anyio
import anyio.abc

from lattica.actors.borrowing import Borrower
from lattica.actors.directory import Directory
from lattica.actors.dispatch import Dispatcher
from lattica.actors.leasing import Lease, Leasing
from lattica.actors.messages import (
    ActorCall,
    ActorId,
    ActorInfo,
    ActorSpec,
    Failure,
    NodeInfo,
    ObjectId,
    Outcome,
    TaskSpec,
    Value,
)
from lattica.actors.names import ActorService, Names, owner_of
from lattica.actors.object_service import FREED, ObjectService
from lattica.actors.objects import ObjectTable, Slot
from lattica.actors.shared_blocks import SharedBlocks
from lattica.actors.streams import Stream
from lattica.actors.submission import Submission
from lattica.actors.supervision import Supervisor
from lattica.actors.waiting import wait_ready
from lattica.clock import Clock, SystemClock
from lattica.config import ActorsConfig
from lattica.dht import Dht
from lattica.errors import GetTimeoutError, NoSuchActorError
from lattica.identity.keys import PeerId
from lattica.rpc import Buffer, Rpc
from lattica.rpc.doubts import Doubts
from lattica.store import Blocks

CLOSE_TIMEOUT = 2.0  # seconds to tell hosts that it is over
LINGER = 2.0  # seconds nested refs are kept after a call, until their receiver has borrowed them


class Owner:
    """Implements `Core` for a peer. Use as an async context manager, on one event loop."""

    def __init__(
        self,
        rpc: Rpc,
        dht: Dht,
        *,
        mesh: PeerId,
        config: ActorsConfig | None = None,
        clock: Clock | None = None,
        blocks: Blocks | None = None,
    ) -> None:
        self._rpc = rpc
        self._config = config or ActorsConfig()
        self._clock = clock or SystemClock()
        self.counters: Counter[str] = Counter()
        self.directory = Directory(rpc, dht, mesh, self._clock)
        self._blocks = SharedBlocks(blocks, limit=self._config.pipe_frame)
        self._names = Names(rpc, dht, self.directory, self._clock)
        self._streams: dict[ObjectId, Stream] = {}
        self._context: AbstractAsyncContextManager[None]
        self._tasks: anyio.abc.TaskGroup
        self._borrower: Borrower
        self.objects: ObjectTable
        self._doubts: Doubts
        self._leasing: Leasing
        self._submission: Submission
        self._supervisor: Supervisor
        self._dispatcher: Dispatcher

    def offer(self, own_node: Callable[[], NodeInfo]) -> None:
        """Tell the owner what its own peer's host offers; before the first submission."""
        self.directory.own_node = own_node

    async def __aenter__(self) -> Self:
        self._context = self._running()
        await self._context.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._context.__aexit__(kind, error, traceback)

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            self._assemble(tasks)
            tasks.start_soon(self._borrower.renew_forever)
            tasks.start_soon(self._leasing.renew_forever)
            tasks.start_soon(self._expire_forever)
            try:
                yield
            finally:
                with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                    await self._supervisor.close()
                    await self._leasing.close()
                self._doubts.close()
                self._rpc.unregister("objects")
                self._rpc.unregister("actors")
                tasks.cancel_scope.cancel()

    def _assemble(self, tasks: anyio.abc.TaskGroup) -> None:
        rpc, config = self._rpc, self._config
        self._tasks = tasks
        self._borrower = Borrower(rpc, self.directory, tasks, config.object_lease)
        self.objects = self._borrower.table = ObjectTable(
            rpc.local,
            on_borrow=self._borrower.borrowed,
            on_return=self._borrower.returned,
            on_free=self._freed,
        )
        self._doubts = Doubts(rpc.links, config.suspect_patience)
        self._leasing = Leasing(rpc, self.directory, self._doubts, config, self._clock, tasks)
        self._submission = Submission(self._leasing, self, tasks)
        self._supervisor = Supervisor(
            self._leasing, self._names, self, self.directory.name_of, tasks
        )
        self._dispatcher = Dispatcher(
            rpc, self.directory, self._doubts, self._supervisor, self, tasks
        )
        objects = ObjectService(
            self.objects, self._clock, config.object_lease, self.counters, self._cancel_own
        )
        rpc.register("objects", objects)
        rpc.register("actors", ActorService(self._supervisor, self.counters))

    # ------------------------------------------------------------------- Core: work

    @property
    def owner(self) -> PeerId:
        """See `Core.owner`."""
        return self._rpc.local

    def submit(self, spec: TaskSpec) -> None:
        """See `Core.submit`."""
        self._expect(spec.returns, spec.stream)
        self._submission.submit(spec)

    async def create_actor(self, spec: ActorSpec) -> None:
        """See `Core.create_actor`."""
        await self._supervisor.create(spec)

    def call_actor(self, call: ActorCall) -> None:
        """See `Core.call_actor`."""
        self._expect(call.returns, call.stream)
        self._dispatcher.call(call)

    async def cancel(self, object_id: ObjectId, *, force: bool) -> None:
        """See `Core.cancel`."""
        if object_id.owner == self.owner:
            await self._cancel_own(object_id, force=force)
            return
        await self.directory.reach(object_id.owner)
        await self._rpc.client(object_id.owner, ObjectService, "objects").cancel(object_id, force)

    async def kill(self, actor: ActorId, *, no_restart: bool) -> None:
        """See `Core.kill`."""
        owner = owner_of(actor)
        if owner == self.owner:
            await self._supervisor.kill(actor, no_restart=no_restart)
            return
        await self.directory.reach(owner)
        await self._rpc.client(owner, ActorService, "actors").kill(actor, no_restart)

    def drop_actor(self, actor: ActorId) -> None:
        """See `Core.drop_actor`."""
        if owner_of(actor) == self.owner:
            self._tasks.start_soon(self._drop, actor)

    async def find_actor(self, name: str) -> ActorInfo:
        """See `Core.find_actor`."""
        return await self._names.find(name)

    async def actor_info(self, actor: ActorId) -> ActorInfo:
        """See `Core.actor_info`."""
        found = await self._dispatcher.locate(actor)
        if isinstance(found, Failure):
            raise NoSuchActorError(found.message)
        return found

    async def nodes(self) -> list[NodeInfo]:
        """See `Core.nodes`."""
        return await self.directory.live()

    # ----------------------------------------------------------------- Core: blocks

    async def put_blocks(self, data: Buffer) -> str:
        """See `Core.put_blocks`."""
        return await self._blocks.put(data)

    async def fetch_blocks(self, manifest_id: str, timeout: float | None) -> Buffer:
        """See `Core.fetch_blocks`."""
        return await self._blocks.fetch(manifest_id, timeout)

    async def remove_blocks(self, manifest_id: str) -> None:
        """See `Core.remove_blocks`."""
        await self._blocks.remove(manifest_id)

    # ---------------------------------------------------------------- Core: objects

    async def put(self, object_id: ObjectId, value: Value) -> None:
        """See `Core.put`."""
        self.objects.settle(object_id, value)

    async def get(self, ids: Sequence[ObjectId], timeout: float | None) -> list[Outcome]:
        """See `Core.get`."""
        slots = [self.objects.retain(object_id) for object_id in ids]
        try:
            self._fetch(ids)
            if not await wait_ready(slots, len(slots), timeout):
                missing = [each for each, slot in zip(ids, slots, strict=True) if not slot.outcome]
                first = missing[0]
                raise GetTimeoutError(
                    f"{len(missing)} of {len(ids)} values were not ready after {timeout:g} s "
                    f"(the first: {first.key.hex()[:12]} of {self.directory.name_of(first.owner)})"
                )
            return [slot.outcome for slot in slots if slot.outcome is not None]
        finally:
            for object_id in ids:
                self.objects.release(object_id)

    async def wait(
        self, ids: Sequence[ObjectId], num_returns: int, timeout: float | None
    ) -> list[ObjectId]:
        """See `Core.wait`."""
        slots = [self.objects.retain(object_id) for object_id in ids]
        try:
            self._fetch(ids)
            await wait_ready(slots, min(num_returns, len(slots)), timeout)
            return [each for each, slot in zip(ids, slots, strict=True) if slot.outcome]
        finally:
            for object_id in ids:
                self.objects.release(object_id)

    async def next_item(self, stream: ObjectId, index: int) -> ObjectId | None:
        """See `Core.next_item`."""
        found = self._streams.get(stream)
        return await found.next(index) if found is not None else None

    def retain(self, object_id: ObjectId) -> None:
        """See `Core.retain`."""
        self.objects.retain(object_id)

    def release(self, object_id: ObjectId) -> None:
        """See `Core.release`."""
        self.objects.release(object_id)

    # --------------------------------------------------- what the parts ask of each other

    def settle(self, object_id: ObjectId, outcome: Outcome) -> None:
        """See `Results.settle`."""
        self.objects.settle(object_id, outcome)

    def item(self, stream: ObjectId, outcome: Outcome) -> None:
        """See `Results.item`."""
        if (found := self._streams.get(stream)) is not None:
            found.add(outcome)

    async def room(self, stream: ObjectId) -> None:
        """See `Results.room`."""
        if (found := self._streams.get(stream)) is not None:
            await found.room()

    def end(self, stream: ObjectId) -> None:
        """See `Results.end`."""
        if (found := self._streams.get(stream)) is not None:
            found.end()

    def name_of(self, lease: Lease) -> str:
        """See `Results.name_of`."""
        return self.directory.name_of(lease.peer)

    def hold(self, ids: tuple[ObjectId, ...]) -> Callable[[], None]:
        """See `Results.hold`. The end of it lingers, for receivers that keep nested refs."""
        for object_id in ids:
            self.objects.retain(object_id)

        def release() -> None:
            for object_id in ids:
                self.objects.release(object_id)

        def let_go() -> None:
            if ids:
                asyncio.get_running_loop().call_later(LINGER, release)

        return let_go

    async def dependencies(self, ids: tuple[ObjectId, ...]) -> Failure | None:
        """See `Results.dependencies`. Others' objects are left for the host to fetch."""
        slots: list[Slot] = []
        for object_id in ids:
            slot = self.objects.find(object_id)
            if slot is not None and object_id.owner == self.owner:
                slots.append(slot)
        await wait_ready(slots, len(slots), None)
        for slot in slots:
            if isinstance(slot.outcome, Failure):
                return slot.outcome
        return None

    async def _cancel_own(self, object_id: ObjectId, *, force: bool) -> None:
        if not await self._submission.cancel(object_id, force=force):
            await self._dispatcher.cancel(object_id, force=force)

    def _fetch(self, ids: Sequence[ObjectId]) -> None:
        for object_id in ids:
            if object_id.owner != self.owner:
                self._borrower.fetch(object_id)
            elif self.objects.is_lost(object_id):
                self.objects.settle(object_id, FREED)

    def _expect(self, returns: Sequence[ObjectId], stream: ObjectId | None) -> None:
        for object_id in returns:
            self.objects.expect(object_id)
        if stream is not None:
            self.objects.expect(stream)
            self._streams[stream] = Stream(stream, self.objects)

    def _freed(self, object_id: ObjectId) -> None:
        stream = self._streams.pop(object_id, None)
        if stream is not None and not stream.close():
            # Nobody reads it any more: what makes it may stop.
            self._tasks.start_soon(partial(self._cancel_own, object_id, force=False))

    async def _drop(self, actor: ActorId) -> None:
        await self._dispatcher.idle(actor)
        await self._supervisor.locate(actor)
        await self._dispatcher.idle(actor)
        await self._supervisor.kill(actor, no_restart=True)

    async def _expire_forever(self) -> None:
        while True:
            await asyncio.sleep(self._config.object_lease / 3)
            self.objects.expire(self._clock.monotonic())
