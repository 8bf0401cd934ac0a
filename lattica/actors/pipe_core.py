"""The core as a worker sees it: every operation goes through the pipe to the host's core."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lattica import errors
from lattica.actors import pipe_messages as pm
from lattica.actors.failures import error_of
from lattica.actors.messages import (
    ActorCall,
    ActorId,
    ActorInfo,
    ActorSpec,
    NodeInfo,
    ObjectId,
    Outcome,
    TaskSpec,
    Value,
)
from lattica.identity.keys import PeerId
from lattica.rpc.buffers import Buffer

A = TypeVar("A")


class PipeCore:
    """Implements `Core`; lives on the worker's pipe loop."""

    def __init__(self, owner: PeerId, send: Callable[[Any], None]) -> None:
        """`send` writes one message to the host, from any thread."""
        self._owner = owner
        self._send = send
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    @property
    def owner(self) -> PeerId:
        return self._owner

    def answer(self, message: pm.Answer) -> None:
        """The host's answer to a request."""
        future = self._waiting.get(message.request)
        if future is not None and not future.done():
            future.set_result(message)

    def submit(self, spec: TaskSpec) -> None:
        self._send(pm.Submit(spec))

    def call_actor(self, call: ActorCall) -> None:
        self._send(pm.CallActor(call))

    def retain(self, object_id: ObjectId) -> None:
        self._send(pm.Retain(object_id))

    def release(self, object_id: ObjectId) -> None:
        self._send(pm.Release(object_id))

    def drop_actor(self, actor: ActorId) -> None:
        self._send(pm.DropActor(actor))

    async def create_actor(self, spec: ActorSpec) -> None:
        await self._ask(pm.Ok, pm.CreateActor, spec)

    async def put(self, object_id: ObjectId, value: Value) -> None:
        await self._ask(pm.Ok, pm.Put, object_id, value)

    async def get(self, ids: Sequence[ObjectId], timeout: float | None) -> list[Outcome]:
        return list((await self._ask(pm.Outcomes, pm.Get, tuple(ids), timeout)).outcomes)

    async def wait(
        self, ids: Sequence[ObjectId], num_returns: int, timeout: float | None
    ) -> list[ObjectId]:
        return list((await self._ask(pm.Ids, pm.Wait, tuple(ids), num_returns, timeout)).ids)

    async def next_item(self, stream: ObjectId, index: int) -> ObjectId | None:
        ids = (await self._ask(pm.Ids, pm.NextItem, stream, index)).ids
        return ids[0] if ids else None

    async def cancel(self, object_id: ObjectId, *, force: bool) -> None:
        await self._ask(pm.Ok, pm.CancelObject, object_id, force)

    async def kill(self, actor: ActorId, *, no_restart: bool) -> None:
        await self._ask(pm.Ok, pm.KillActor, actor, no_restart)

    async def find_actor(self, name: str) -> ActorInfo:
        return (await self._ask(pm.Info, pm.FindActor, name)).info

    async def actor_info(self, actor: ActorId) -> ActorInfo:
        return (await self._ask(pm.Info, pm.GetActorInfo, actor)).info

    async def nodes(self) -> list[NodeInfo]:
        return list((await self._ask(pm.Nodes, pm.ListNodes)).nodes)

    async def put_blocks(self, data: Buffer) -> str:
        return (await self._ask(pm.BlocksId, pm.PutBlocks, data)).manifest_id

    async def fetch_blocks(self, manifest_id: str, timeout: float | None) -> Buffer:
        return (await self._ask(pm.BlocksData, pm.FetchBlocks, manifest_id, timeout)).data

    async def remove_blocks(self, manifest_id: str) -> None:
        await self._ask(pm.Ok, pm.RemoveBlocks, manifest_id)

    async def _ask(self, kind: type[A], request: Callable[..., Any], *args: Any) -> A:
        # No deadline of its own: the answer takes as long as what was asked for takes,
        # and the process ends with the pipe.
        number = next(self._numbers)
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._send(request(number, *args))
            answer = await future
        except asyncio.CancelledError:
            self._send(pm.Abandon(number))
            raise
        finally:
            del self._waiting[number]
        if isinstance(answer, pm.Refused):
            raise _error_of(answer)
        if not isinstance(answer, kind):
            raise errors.FrameError(f"the host answered with a {type(answer).__name__}")
        return answer


def _error_of(answer: pm.Refused) -> errors.LatticaError:
    if answer.failure is not None:
        return error_of(answer.failure)
    kind = getattr(errors, answer.error, None)
    if isinstance(kind, type) and issubclass(kind, errors.LatticaError):
        try:
            return kind(answer.message)
        except TypeError:  # a class that wants more than a message
            pass
    return errors.ActorsError(f"{answer.error}: {answer.message}")
