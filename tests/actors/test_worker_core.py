"""User code in a worker uses the whole API: every operation reaches the host's core."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from lattica.actors import context, pipe_messages
from lattica.actors.context import current
from lattica.actors.messages import ActorCall, ActorSpec, Failure, ObjectId, TaskSpec
from lattica.actors.pipe import FrameEncoder
from lattica.actors.refs import ObjectRef
from lattica.actors.serialization import dumps, loads
from lattica.errors import GetTimeoutError, NoSuchActorError
from lattica.rpc.buffers import Buffer
from tests.actors.hosting import ALICE, HOST, eventually, hosting, task

pytestmark = pytest.mark.anyio


async def test_put_get_and_wait_go_to_the_host(tmp_path: Path) -> None:
    def use() -> Any:
        here = current()
        one, two = here.new_object_id(), here.new_object_id()
        assert one.owner == here.core.owner
        here.run(here.core.put, one, dumps(b"x" * 1_000_000))
        [value] = here.run(here.core.get, [one], 5.0)
        assert len(loads(value)) == 1_000_000
        assert here.run(here.core.wait, [one, two], 1, 0.1) == [one]
        try:
            here.run(here.core.get, [two], 0.01)
        except GetTimeoutError as error:
            return here.kind, here.name, str(error)
        return None

    async with hosting(tmp_path) as bench:
        assert await bench.run(use) == ("worker", "tester", "not ready within 0.01 s")
        assert [each.owner for each in bench.core.objects] == [HOST]


async def test_every_other_operation_arrives(tmp_path: Path) -> None:
    def use() -> Any:
        here = current()
        core, ident = here.core, here.new_object_id()
        call = dumps(((), {}))
        spec = TaskSpec(b"t" * 16, "f", Buffer(b"f"), b"h", call, (), (here.new_object_id(),))
        here.post(core.submit, spec)
        here.post(core.call_actor, ActorCall(b"a", b"t" * 16, "m", call, (), ()))
        here.post(core.drop_actor, b"a")
        here.run(
            lambda: core.create_actor(ActorSpec(b"a", core.owner, "A", Buffer(b""), call, (), {}))
        )
        here.run(lambda: core.cancel(ident, force=True))
        here.run(lambda: core.kill(b"b", no_restart=True))
        assert here.run(core.next_item, ident, 0) is None
        assert [node.name for node in here.run(core.nodes)] == ["here"]
        try:
            here.run(core.find_actor, "nobody")
        except NoSuchActorError as error:
            return str(error)
        return None

    async with hosting(tmp_path) as bench:
        assert await bench.run(use) == "no actor is called 'nobody'"
        seen = [what for what, _ in bench.core.seen]
        assert seen == ["submit", "call_actor", "drop_actor", "create_actor", "cancel", "kill"]


async def test_async_code_may_use_the_api_from_its_own_loop(tmp_path: Path) -> None:
    async def use() -> Any:
        here = current()
        ids = [here.new_object_id() for _ in range(20)]
        await asyncio.gather(
            *(here.run_async(here.core.put, each, dumps(i)) for i, each in enumerate(ids))
        )
        return [loads(v) for v in await here.run_async(here.core.get, ids, None)]

    async with hosting(tmp_path) as bench:
        assert await bench.run(use) == list(range(20))


async def test_a_blocked_get_can_be_cancelled(tmp_path: Path) -> None:
    def wait(path: str) -> None:
        here = current()
        Path(path).write_text("")
        here.run(here.core.get, [here.new_object_id()], None)

    path = tmp_path / "begun"
    async with hosting(tmp_path) as bench:
        lease, spec = bench.lease(), task(wait, str(path))
        run = asyncio.create_task(bench.host.run(ALICE, lease, spec))
        await eventually(path.exists)
        bench.host.cancel(ALICE, spec.task, force=False)
        [failure] = await run
        assert isinstance(failure, Failure)
        assert failure.kind == "cancelled"


async def test_references_are_released_when_their_worker_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lattica.actors.pipe_server as pipe_server

    monkeypatch.setattr(pipe_server, "PIN_SECONDS", 0.05)
    assert context.PIN_SECONDS > 1

    def keep() -> int:
        here = current()
        here.kept = [ObjectRef(here.new_object_id()) for _ in range(3)]  # type: ignore[attr-defined]
        del here.kept[0]  # type: ignore[attr-defined]
        return os.getpid()

    async with hosting(tmp_path) as bench:
        pid = await bench.run(keep)
        await eventually(lambda: sorted(bench.core.references.values()) == [0, 1, 1])
        os.kill(pid, 9)
        await eventually(lambda: sorted(bench.core.references.values()) == [0, 0, 0])


# ----------------------------------------------------------- a worker that misbehaves


def _pipe() -> socket.socket:
    """Inside a worker: its own end of the pipe, as hostile user code could find it."""
    import gc

    from lattica.actors.worker import HostPipe

    [pipe] = [each for each in gc.get_objects() if isinstance(each, HostPipe)]
    return pipe._sock


def _garbage(kind: str) -> bytes:
    encoder = FrameEncoder(1 << 30)

    def frame(message: Any) -> bytes:
        return b"".join(encoder.encode(message))

    return {
        "noise": bytes(range(256)) * 300,
        "not msgpack": struct.pack("<II", 3, 0) + b"\xc1\xc1\xc1",
        "huge meta": struct.pack("<II", 2**32 - 1, 0),
        "huge buffer": struct.pack("<IIQ", 1, 1, 2**63),
        "many buffers": struct.pack("<II", 1, 2**32 - 1),
        "a host's message": frame(pipe_messages.Stop(1)),
        "an item nobody asked for": frame(pipe_messages.Item(99, dumps(1))),
        "a second creation": frame(pipe_messages.Created()),
        "too many outcomes": frame(pipe_messages.Done(1, (dumps(1), dumps(2)))),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "noise",
        "not msgpack",
        "huge meta",
        "huge buffer",
        "many buffers",
        "a host's message",
        "an item nobody asked for",
        "a second creation",
        "too many outcomes",
    ],
)
async def test_garbage_from_a_worker_ends_that_worker_only(tmp_path: Path, kind: str) -> None:
    def hostile(data: bytes) -> None:
        import time

        _pipe().sendall(data)
        time.sleep(600)

    async with hosting(tmp_path) as bench:
        failure = await bench.run(hostile, _garbage(kind))
        assert failure.kind == "worker_died"
        assert "broke the protocol" in failure.message
        assert bench.host.counters["bad_frame"] == 1
        assert await bench.run(os.getpid)


async def test_a_worker_cannot_release_or_make_what_is_not_its_own(tmp_path: Path) -> None:
    theirs = ObjectId(ALICE, b"k" * 16)

    def hostile() -> str:
        here = current()
        here.post(here.core.release, theirs)
        here.run(here.core.nodes)
        try:
            here.run(here.core.put, theirs, dumps(1))
        except Exception as error:
            return str(error)
        return ""

    async with hosting(tmp_path) as bench:
        bench.core.references[theirs] = 1
        assert "its host's peer only" in await bench.run(hostile)
        assert bench.core.references[theirs] == 1
        assert bench.host.counters["dropped:release"] == 1


async def test_a_worker_that_closes_its_pipe_is_ended(tmp_path: Path) -> None:
    def hostile() -> None:
        import time

        _pipe().shutdown(socket.SHUT_WR)
        time.sleep(600)

    async with hosting(tmp_path) as bench:
        failure = await bench.run(hostile)
        assert failure.kind == "worker_died"
        await eventually(lambda: bench.host.worker_pids() == [])
