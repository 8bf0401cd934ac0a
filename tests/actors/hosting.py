"""A host with real processes, a link-less rpc, and a core that records what workers ask of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil

from lattica.actors.host import Host
from lattica.actors.messages import (
    ActorCall,
    ActorId,
    ActorInfo,
    ActorSpec,
    Failure,
    LeaseId,
    LeaseRequest,
    NodeInfo,
    ObjectId,
    Outcome,
    Requirements,
    TaskSpec,
    Value,
)
from lattica.actors.serialization import dump_call, dump_code, loads
from lattica.config import ActorsConfig
from lattica.errors import GetTimeoutError, NoSuchActorError
from lattica.identity.keys import Identity, PeerId
from lattica.link.interface import Link

ALICE = Identity(b"a" * 32).peer_id
BOB = Identity(b"b" * 32).peer_id
HOST = Identity(b"h" * 32).peer_id


class FakeLinks:
    """Remembers its listeners, so that a test can lose a link."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[Any, bool], None]] = []

    def subscribe(self, listener: Callable[[Link, bool], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)


class FakeRpc:
    """What a host needs of an rpc."""

    def __init__(self) -> None:
        self.local = HOST
        self.links: Any = FakeLinks()
        self.services: dict[str, object] = {}

    def register(self, name: str, service: object) -> None:
        self.services[name] = service


class FakeCore:
    """Objects in a dictionary; everything else is written down."""

    def __init__(self) -> None:
        self.owner: PeerId = HOST
        self.seen: list[tuple[str, Any]] = []
        self.objects: dict[ObjectId, Outcome] = {}
        self.references: dict[ObjectId, int] = {}
        self._changed = asyncio.Event()

    def store(self, object_id: ObjectId, outcome: Outcome) -> None:
        self.objects[object_id] = outcome
        self._changed.set()
        self._changed = asyncio.Event()

    def submit(self, spec: TaskSpec) -> None:
        self.seen.append(("submit", spec))

    async def create_actor(self, spec: ActorSpec) -> None:
        self.seen.append(("create_actor", spec))

    def call_actor(self, call: ActorCall) -> None:
        self.seen.append(("call_actor", call))

    def drop_actor(self, actor: ActorId) -> None:
        self.seen.append(("drop_actor", actor))

    async def put(self, object_id: ObjectId, value: Value) -> None:
        self.store(object_id, value)

    async def get(self, ids: Sequence[ObjectId], timeout: float | None) -> list[Outcome]:
        with anyio.move_on_after(timeout) as scope:
            while any(each not in self.objects for each in ids):
                await self._changed.wait()
        if scope.cancelled_caught:
            raise GetTimeoutError(f"not ready within {timeout} s")
        return [self.objects[each] for each in ids]

    async def wait(
        self, ids: Sequence[ObjectId], num_returns: int, timeout: float | None
    ) -> list[ObjectId]:
        return [each for each in ids if each in self.objects]

    async def next_item(self, stream: ObjectId, index: int) -> ObjectId | None:
        return None

    async def cancel(self, object_id: ObjectId, *, force: bool) -> None:
        self.seen.append(("cancel", object_id))

    async def kill(self, actor: ActorId, *, no_restart: bool) -> None:
        self.seen.append(("kill", actor))

    async def find_actor(self, name: str) -> ActorInfo:
        raise NoSuchActorError(f"no actor is called {name!r}")

    async def actor_info(self, actor: ActorId) -> ActorInfo:
        raise NoSuchActorError("gone")

    def retain(self, object_id: ObjectId) -> None:
        self.references[object_id] = self.references.get(object_id, 0) + 1

    def release(self, object_id: ObjectId) -> None:
        self.references[object_id] -= 1

    async def nodes(self) -> list[NodeInfo]:
        return [NodeInfo(HOST, "here", (), {"CPU": 1.0}, {"CPU": 1.0}, {})]


class Bench:
    """A host under test, and short ways to say what an owner would."""

    def __init__(self, host: Host, core: FakeCore, log_dir: Path) -> None:
        self.host = host
        self.core = core
        self.log_dir = log_dir
        self.links: FakeLinks = host._rpc.links  # type: ignore[assignment]

    def lease(self, peer: PeerId = ALICE, **requirements: Any) -> LeaseId:
        requirements.setdefault("cpus", 0.5)
        reply = self.host.lease(peer, LeaseRequest(Requirements(**requirements), "task", "it"))
        assert reply.lease is not None, reply.reason
        return reply.lease

    async def run(self, function: Any, *args: Any, peer: PeerId = ALICE, **options: Any) -> Any:
        """Run a task on a lease of its own; the value, or the failure."""
        lease = self.lease(peer, **options.pop("requirements", {}))
        try:
            outcomes = await self.host.run(peer, lease, task(function, *args, **options))
        finally:
            self.host.release(peer, lease)
        values = [value_of(outcome) for outcome in outcomes]
        return values[0] if len(values) == 1 else values

    async def create(self, cls: type, *args: Any, peer: PeerId = ALICE, **options: Any) -> Actor:
        """Create an actor; asserts that it was constructed."""
        lease = self.lease(peer, **options.pop("requirements", {}))
        spec = actor(cls, *args, owner=peer, **options)
        failure = await self.host.create_actor(peer, lease, spec)
        assert failure is None, failure
        return Actor(self.host, spec, lease)


class Actor:
    """An actor under test."""

    def __init__(self, host: Host, spec: ActorSpec, lease: LeaseId) -> None:
        self.host = host
        self.spec = spec
        self.lease = lease

    @property
    def pid(self) -> int:
        return self.host._actors.pid(self.spec.actor)

    async def call(self, method: str, *args: Any, peer: PeerId = ALICE, **options: Any) -> Any:
        [outcome] = await self.host.call(peer, self.message(method, *args, **options))
        return value_of(outcome)

    def message(self, method: str, *args: Any, **options: Any) -> ActorCall:
        value, refs = dump_call(args, {}, method)
        options = {"arg_refs": refs, "returns": (new_id(),)} | options
        return ActorCall(self.spec.actor, os.urandom(16), method, value, **options)

    async def until(self, state: str, *, restarts: int = 0) -> None:
        with anyio.fail_after(10):
            async for each in self.host.watch(self.spec.actor):
                if each.state == state and each.restarts >= restarts:
                    return
        raise AssertionError(f"never {state}")


def new_id(owner: PeerId = ALICE) -> ObjectId:
    return ObjectId(owner, os.urandom(16))


def task(function: Any, *args: Any, **options: Any) -> TaskSpec:
    value, refs = dump_call(args, {}, "it")
    code = dump_code(function, "it")
    fields: dict[str, Any] = {"arg_refs": refs, "returns": (new_id(),)}
    fields |= {"task": os.urandom(16), "name": function.__name__}
    return TaskSpec(
        function=code, function_hash=str(hash(bytes(code))).encode(), args=value, **fields | options
    )


def actor(cls: type, *args: Any, owner: PeerId = ALICE, **options: Any) -> ActorSpec:
    value, refs = dump_call(args, {}, "it")
    return ActorSpec(
        actor=owner.raw + os.urandom(16),
        owner=owner,
        class_name=cls.__name__,
        definition=dump_code(cls, "it"),
        args=value,
        arg_refs=refs,
        methods={},
        **options,
    )


def value_of(outcome: Outcome) -> Any:
    return outcome if isinstance(outcome, Failure) else loads(outcome)


@asynccontextmanager
async def hosting(tmp_path: Path, **options: Any) -> AsyncIterator[Bench]:
    """A host; afterwards nothing of it may be left."""
    core = FakeCore()
    config = options.pop("config", ActorsConfig())
    resources = {"CPU": 8.0, **options.pop("resources", {})}
    labels = options.pop("labels", {})
    log_dir = tmp_path / "logs"
    host = Host(FakeRpc(), "tester", resources, labels, core, log_dir, config, **options)
    async with host:
        yield Bench(host, core, log_dir)
        pids = [host.forkserver_pid, *host.worker_pids()]
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []


def read(path: Path) -> str:
    """What a process wrote; empty if it has not."""
    return path.read_text() if path.exists() else ""


def touch(path: Path) -> None:
    """Make the file that a process waits for."""
    path.write_text("")


async def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for something that another process does."""
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.005)
