"""The host's side of a worker's core: its operations, carried out by the host's own."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import anyio.abc

from lattica.actors import pipe_messages as pm
from lattica.actors.context import PIN_SECONDS
from lattica.actors.core import Core
from lattica.actors.messages import Failure, ObjectId
from lattica.errors import LatticaError

log = logging.getLogger("lattica.actors")

MAX_REQUESTS = 10_000  # that one worker may wait for
IDLE_AFTER = 0.02  # seconds in which a worker that waits for others' results counts as busy


class CoreServer:
    """Serves one worker. What it retained is released when it has ended."""

    def __init__(
        self,
        core: Core,
        send: Callable[[Any], None],
        tasks: anyio.abc.TaskGroup,
        counters: Counter[str],
    ) -> None:
        self._core = core
        self._send = send
        self._tasks = tasks
        self._counters = counters
        self._requests: dict[int, anyio.CancelScope] = {}
        self._retained: Counter[ObjectId] = Counter()
        self._is_closed = False
        self._waits = 0  # requests whose answers are other tasks' results
        self._timer: asyncio.TimerHandle | None = None
        self._is_idle = False
        self.on_idle: Callable[[bool], None] | None = None  # it waits for results, or no more

    def handle(self, message: pm.Request | pm.Note) -> None:
        """Carry out one operation."""
        if isinstance(message, pm.Note):
            # Through the loop's queue, as the first steps of the requests: order is kept.
            asyncio.get_running_loop().call_soon(self._note, message)
        elif message.request in self._requests or len(self._requests) >= MAX_REQUESTS:
            self._counters["dropped:request"] += 1
        else:
            scope = self._requests[message.request] = anyio.CancelScope()
            self._tasks.start_soon(self._serve, message, scope)

    def close(self) -> None:
        """The worker has ended."""
        self._is_closed = True
        for scope in self._requests.values():
            scope.cancel()
        self._wait(-self._waits)
        if self._retained:
            # Its last results may hold refs that their receivers have yet to borrow.
            asyncio.get_running_loop().call_later(PIN_SECONDS, self._release_all)

    def _release_all(self) -> None:
        for object_id in self._retained.elements():
            self._core.release(object_id)
        self._retained.clear()

    def _note(self, message: pm.Note) -> None:
        if self._is_closed:
            return
        core = self._core
        try:
            if isinstance(message, pm.Retain):
                self._retained[message.object_id] += 1
                core.retain(message.object_id)
            elif isinstance(message, pm.Release):
                self._release(message.object_id)
            elif isinstance(message, pm.Submit):
                self._check_own(*message.spec.returns)
                core.submit(message.spec)
            elif isinstance(message, pm.CallActor):
                self._check_own(*message.call.returns)
                core.call_actor(message.call)
            elif isinstance(message, pm.DropActor):
                core.drop_actor(message.actor)
            elif (scope := self._requests.get(message.request)) is not None:
                scope.cancel()
        except LatticaError:
            self._counters["refused:note"] += 1

    def _release(self, object_id: ObjectId) -> None:
        if self._retained[object_id] <= 0:
            del self._retained[object_id]
            self._counters["dropped:release"] += 1
            return
        self._retained[object_id] -= 1
        if not self._retained[object_id]:
            del self._retained[object_id]
        self._core.release(object_id)

    async def _serve(self, message: pm.Request, scope: anyio.CancelScope) -> None:
        is_wait = isinstance(message, pm.Get | pm.Wait | pm.NextItem)
        with scope:
            if is_wait:
                self._wait(1)
            try:
                answer = await self._answer(message)
            except LatticaError as error:
                answer = _refused(message.request, error)
            except Exception as error:  # a fault of the core must not end the host
                log.exception("%s for a worker", type(message).__name__)
                answer = pm.Refused(message.request, "ActorsError", repr(error))
            finally:
                if is_wait and not self._is_closed:
                    self._wait(-1)
            if not self._is_closed:
                self._send(answer)
        del self._requests[message.request]

    def _wait(self, change: int) -> None:
        self._waits += change
        if self._waits:
            if self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(IDLE_AFTER, self._set_idle, True)
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._set_idle(False)

    def _set_idle(self, is_idle: bool) -> None:
        if is_idle != self._is_idle:
            self._is_idle = is_idle
            if self.on_idle is not None:
                self.on_idle(is_idle)

    async def _answer(self, message: pm.Request) -> pm.Answer:
        core, request = self._core, message.request
        if isinstance(message, pm.Get):
            outcomes = await core.get(message.ids, message.timeout)
            return pm.Outcomes(request, tuple(outcomes))
        if isinstance(message, pm.Wait):
            ready = await core.wait(message.ids, message.num_returns, message.timeout)
            return pm.Ids(request, tuple(ready))
        if isinstance(message, pm.NextItem):
            item = await core.next_item(message.stream, message.index)
            return pm.Ids(request, () if item is None else (item,))
        if isinstance(message, pm.FindActor):
            return pm.Info(request, await core.find_actor(message.name))
        if isinstance(message, pm.GetActorInfo):
            return pm.Info(request, await core.actor_info(message.actor))
        if isinstance(message, pm.ListNodes):
            return pm.Nodes(request, tuple(await core.nodes()))
        if isinstance(message, pm.PutBlocks):
            return pm.BlocksId(request, await core.put_blocks(message.data))
        if isinstance(message, pm.FetchBlocks):
            data = await core.fetch_blocks(message.manifest_id, message.timeout)
            return pm.BlocksData(request, data)
        if isinstance(message, pm.Put):
            self._check_own(message.object_id)
            await core.put(message.object_id, message.value)
        elif isinstance(message, pm.CreateActor):
            await core.create_actor(message.spec)
        elif isinstance(message, pm.CancelObject):
            await core.cancel(message.object_id, force=message.force)
        elif isinstance(message, pm.RemoveBlocks):
            await core.remove_blocks(message.manifest_id)
        else:
            await core.kill(message.actor, no_restart=message.no_restart)
        return pm.Ok(request)

    def _check_own(self, *ids: ObjectId) -> None:
        if any(object_id.owner != self._core.owner for object_id in ids):
            raise LatticaError("a worker makes objects of its host's peer only")


def _refused(request: int, error: LatticaError) -> pm.Refused:
    failure = getattr(error, "failure", None)
    return pm.Refused(
        request,
        type(error).__name__,
        str(error),
        failure if isinstance(failure, Failure) else None,
    )
