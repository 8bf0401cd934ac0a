"""A core that runs everything in its own process, at once: for tests of the face alone."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from lattica.actors import serialization
from lattica.actors.context import Context, set_current
from lattica.actors.failures import pack_error
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
from lattica.actors.streams import item_id
from lattica.errors import GetTimeoutError, NoSuchActorError
from lattica.identity.keys import Identity, PeerId


class FakeCore:
    """Implements `Core`; records what it was told."""

    def __init__(self) -> None:
        self._owner = Identity.generate().peer_id
        self.outcomes: dict[ObjectId, Outcome] = {}
        self.specs: list[TaskSpec | ActorSpec | ActorCall] = []
        self.refs: Counter[ObjectId] = Counter()
        self.actors: dict[ActorId, tuple[ActorSpec, Any]] = {}
        self.dropped: list[ActorId] = []
        self.killed: list[tuple[ActorId, bool]] = []
        self.cancelled: list[tuple[ObjectId, bool]] = []
        self.stream_lengths: dict[ObjectId, int] = {}

    @property
    def owner(self) -> PeerId:
        return self._owner

    def submit(self, spec: TaskSpec) -> None:
        self.specs.append(spec)
        self._run(serialization.load_code(spec.function), spec)

    async def create_actor(self, spec: ActorSpec) -> None:
        self.specs.append(spec)
        args, kwargs = self._arguments(spec)
        cls = serialization.load_code(spec.definition)
        self.actors[spec.actor] = (spec, cls(*args, **kwargs))

    def call_actor(self, call: ActorCall) -> None:
        self.specs.append(call)
        self._run(getattr(self.actors[call.actor][1], call.method), call)

    async def put(self, object_id: ObjectId, value: Value) -> None:
        self.outcomes[object_id] = value

    async def get(self, ids: Sequence[ObjectId], timeout: float | None) -> list[Outcome]:
        if any(each not in self.outcomes for each in ids):
            if timeout is None:
                await asyncio.Event().wait()
            raise GetTimeoutError(f"not ready after {timeout:g} s")
        return [self.outcomes[each] for each in ids]

    async def wait(
        self, ids: Sequence[ObjectId], num_returns: int, timeout: float | None
    ) -> list[ObjectId]:
        return [each for each in ids if each in self.outcomes]

    async def next_item(self, stream: ObjectId, index: int) -> ObjectId | None:
        return item_id(stream, index) if index < self.stream_lengths[stream] else None

    async def cancel(self, object_id: ObjectId, *, force: bool) -> None:
        self.cancelled.append((object_id, force))

    async def kill(self, actor: ActorId, *, no_restart: bool) -> None:
        self.killed.append((actor, no_restart))

    def drop_actor(self, actor: ActorId) -> None:
        self.dropped.append(actor)

    async def find_actor(self, name: str) -> ActorInfo:
        for actor, (spec, _) in self.actors.items():
            if spec.name == name:
                return await self.actor_info(actor)
        raise NoSuchActorError(f"no live actor is named {name!r}")

    async def actor_info(self, actor: ActorId) -> ActorInfo:
        spec, _ = self.actors[actor]
        return ActorInfo(
            actor, spec.owner, spec.owner, spec.class_name, spec.name, spec.methods, spec.signatures
        )

    def retain(self, object_id: ObjectId) -> None:
        self.refs[object_id] += 1

    def release(self, object_id: ObjectId) -> None:
        self.refs[object_id] -= 1

    async def nodes(self) -> list[NodeInfo]:
        total = {"CPU": 4.0, "memory": 100.0}
        return [
            NodeInfo(self._owner, name, (), total, {"CPU": free, "memory": 50.0}, {})
            for name, free in (("one", 1.0), ("two", 3.0))
        ]

    def _arguments(self, spec: TaskSpec | ActorSpec | ActorCall) -> Any:
        values = [self.outcomes[each] for each in spec.arg_refs]
        assert all(isinstance(value, Value) for value in values)
        return serialization.load_call(spec.args, values)  # type: ignore[arg-type]

    def _run(self, function: Any, spec: TaskSpec | ActorCall) -> None:
        try:
            args, kwargs = self._arguments(spec)
            result = function(*args, **kwargs)
            if spec.stream is not None:
                items = list(result)
                self.stream_lengths[spec.stream] = len(items)
                for index, item in enumerate(items):
                    self.outcomes[item_id(spec.stream, index)] = serialization.dumps(item)
                return
            if inspect.iscoroutine(result):
                result = asyncio.run(result)
            results = [result] if len(spec.returns) == 1 else result
            outcomes: list[Outcome] = [serialization.dumps(each) for each in results]
        except Exception as error:
            failure: Failure = pack_error(error, peer_name="fake")
            outcomes = [failure] * len(spec.returns)
        self.outcomes.update(zip(spec.returns, outcomes, strict=True))


@contextlib.contextmanager
def fake_session() -> Iterator[FakeCore]:
    """A driver context whose core is a `FakeCore` on a thread of its own."""
    core = FakeCore()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    context = Context(core, loop, kind="driver", name="tester")
    set_current(context)
    try:
        yield core
    finally:
        context.close()
        set_current(None)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()
