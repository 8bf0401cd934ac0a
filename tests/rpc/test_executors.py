"""Handlers in threads and processes: outcomes, deadlines, and what is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from lattica.config import RpcConfig
from lattica.errors import BadResultError, BusyError, DeadlineError, HandlerDiedError, RemoteError
from lattica.rpc import Buffer, Rpc, method, trace_id
from tests.processes import still_running
from tests.rpc.mesh import Mesh, collect, until
from tests.rpc.outside import Crunch, Point, Threaded

pytestmark = pytest.mark.anyio
TRACE = b"0123456789abcdef"


def is_running(pid: int) -> bool:
    """Whether a process goes on; a zombie does not."""
    try:
        return bool(still_running([psutil.Process(pid)], timeout=0))
    except psutil.NoSuchProcess:
        return False


async def eventually(condition: object) -> None:
    """Wait for what another thread or process does, without a busy loop."""
    assert callable(condition)
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with Mesh(RpcConfig(max_threads=3, max_processes=1)) as mesh:
        yield mesh


@pytest.fixture
def threaded(mesh: Mesh) -> Iterator[Threaded]:
    threaded = Threaded()
    mesh.b.register("threaded", threaded)
    yield threaded
    threaded.release.set()


def running(mesh: Mesh, name: str = "threaded.block") -> int:
    service, method_name = name.split(".")
    return mesh.b._registry.services[service][method_name].gate.running


@pytest.fixture(params=["link", "local"])
def rpc(mesh: Mesh, request: pytest.FixtureRequest) -> Rpc:
    return mesh.a if request.param == "link" else mesh.b


@pytest.fixture
def stub(mesh: Mesh, threaded: Threaded, rpc: Rpc) -> Threaded:
    return rpc.client(mesh.b.local, Threaded, "threaded", timeout=20)


# ------------------------------------------------------------------ threads


async def test_a_plain_function_runs_in_a_thread(stub: Threaded) -> None:
    assert await asyncio.gather(*(stub.add(i, b=i) for i in range(50))) == [
        2 * i for i in range(50)
    ]


async def test_errors_of_threads_are_those_of_handlers(stub: Threaded) -> None:
    with pytest.raises(RemoteError, match="ValueError on b: here") as caught:
        await stub.fail("here")
    assert "in fail" in caught.value.remote_traceback
    with pytest.raises(RemoteError, match="SystemExit"):
        await stub.leave()
    with pytest.raises(BadResultError, match="wrong"):
        await stub.wrong()
    assert await stub.add(1) == 2


async def test_a_thread_knows_its_call(stub: Threaded, rpc: Rpc) -> None:
    trace_id.set(TRACE)
    assert await stub.who() == (rpc.name, TRACE)


async def test_the_loop_goes_on_while_a_thread_blocks(
    mesh: Mesh, threaded: Threaded, stub: Threaded
) -> None:
    tasks = [asyncio.create_task(stub.block()) for _ in range(5)]
    await eventually(lambda: running(mesh) == 2)
    assert await stub.add(1) == 2  # a third thread is free
    threaded.release.set()
    assert await asyncio.gather(*tasks) == ["released"] * 5


async def test_a_thread_whose_caller_has_gone_keeps_its_place(
    mesh: Mesh, threaded: Threaded, rpc: Rpc
) -> None:
    hasty = rpc.client(mesh.b.local, Threaded, "threaded", timeout=0.05)
    for _ in range(2):
        with pytest.raises(DeadlineError):
            await hasty.block()
    task = asyncio.create_task(rpc.client(mesh.b.local, Threaded, "threaded").block())
    await until(lambda: mesh.b._registry.admission.queued == 1)
    assert running(mesh) == 2, "both threads go on"
    sessions = list(mesh.b._sessions.values())
    assert all(len(session.serving) == 1 for session in sessions), "the calls are over"
    threaded.release.set()
    assert await task == "released"
    await until(lambda: running(mesh) == 0)


async def test_threads_are_bounded_for_all_methods_together(mesh: Mesh) -> None:
    class Many:
        def __init__(self) -> None:
            self.release = threading.Event()

        @method(run_in="thread")
        def one(self) -> None:
            self.release.wait(30)

        @method(run_in="thread", max_queue=1)
        def other(self) -> None:
            self.release.wait(30)

    many = Many()
    mesh.b.register("many", many)
    before = threading.active_count()
    stub = mesh.a.client(mesh.b.local, Many, "many")
    tasks = [asyncio.create_task(stub.one()) for _ in range(20)]
    tasks.append(asyncio.create_task(stub.other()))
    await until(lambda: mesh.b._registry.admission.queued == 18)
    assert threading.active_count() - before <= 3
    with pytest.raises(BusyError):
        await stub.other()
    many.release.set()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("n", [0, 1, 500])
async def test_a_plain_generator_streams_from_a_thread(stub: Threaded, n: int) -> None:
    assert [i async for i in stub.count(n)] == list(range(n))


async def test_an_error_comes_after_the_items_of_a_thread(stub: Threaded) -> None:
    got: list[int] = []
    with pytest.raises(RemoteError, match="enough"):
        await collect(stub.count(10, 7), got)
    assert got == list(range(7))


async def test_a_generator_ends_with_its_consumer(
    mesh: Mesh, threaded: Threaded, stub: Threaded
) -> None:
    items = stub.count(10_000_000)
    assert await anext(items) == 0
    await items.aclose()  # type: ignore[attr-defined]
    await eventually(threaded.ended.is_set)
    await eventually(lambda: running(mesh, "threaded.count") == 0)


async def test_an_rpc_ends_while_a_thread_does_not(threaded: Threaded) -> None:
    async with Mesh() as mesh:
        mesh.b.register("threaded", threaded)
        task = asyncio.create_task(mesh.a.client(mesh.b.local, Threaded, "threaded").block())
        await eventually(lambda: running(mesh) == 1)
    with pytest.raises(Exception, match="lost"):
        await task


# ---------------------------------------------------------------- processes


@pytest.fixture
def crunch(mesh: Mesh, rpc: Rpc) -> Crunch:
    mesh.b.register("crunch", Crunch())
    return rpc.client(mesh.b.local, Crunch, "crunch", timeout=60)


async def test_a_process_takes_typed_values_and_returns_one(crunch: Crunch, rpc: Rpc) -> None:
    pids = {await crunch.pid() for _ in range(3)}
    assert len(pids) == 1, "it is kept"
    assert os.getpid() not in pids
    data = Buffer(bytes(range(256)) * 100)
    result = await crunch.total(data, [Point(1), Point(2, 3)], times=3)
    assert bytes(result) == bytes(data) * 3 + b"\1\2"
    trace_id.set(TRACE)
    assert await crunch.who() == (rpc.name, rpc.local, TRACE, "Crunch")
    with pytest.raises(RemoteError, match="ValueError on b: here") as caught:
        await crunch.fail("here")
    assert "in fail" in caught.value.remote_traceback
    with pytest.raises(RemoteError, match="pickle"):
        await crunch.unpicklable()
    assert {await crunch.pid()} == pids


async def test_a_process_that_dies_fails_its_own_call_only(crunch: Crunch) -> None:
    before = await crunch.pid()
    with pytest.raises(HandlerDiedError, match="another one takes the next call"):
        await crunch.die()
    assert await crunch.pid() != before


async def test_one_that_dies_in_its_sleep_is_not_noticed(crunch: Crunch) -> None:
    before = await crunch.pid()
    os.kill(before, signal.SIGKILL)
    await eventually(lambda: not is_running(before))
    await asyncio.sleep(0.2)  # its executor hears of it in a thread of its own
    assert await crunch.pid() != before


@pytest.mark.parametrize("how", ["deadline", "cancel"])
async def test_a_process_that_nobody_waits_for_is_ended_and_replaced(
    mesh: Mesh, crunch: Crunch, rpc: Rpc, how: str, tmp_path: Path
) -> None:
    await crunch.pid()  # it has started
    hasty = rpc.client(mesh.b.local, Crunch, "crunch", timeout=1.0 if how == "deadline" else 60)
    path = tmp_path / "pid"
    task = asyncio.create_task(hasty.spin(str(path)))
    await eventually(lambda: path.exists() and path.read_text())
    spinning = int(path.read_text())
    if how == "cancel":
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        with pytest.raises(DeadlineError):
            await task
    await eventually(lambda: not is_running(spinning))
    assert await crunch.pid() != spinning  # there is one process at most
    await until(lambda: running(mesh, "crunch.spin") == 0)


async def test_processes_end_with_their_rpc(tmp_path: Path) -> None:
    async with Mesh(RpcConfig(max_processes=2)) as mesh:
        mesh.b.register("crunch", Crunch())
        stub = mesh.a.client(mesh.b.local, Crunch, "crunch", timeout=60)
        path = tmp_path / "pid"
        task = asyncio.create_task(stub.spin(str(path)))
        idle = await stub.pid()
        await eventually(lambda: path.exists() and path.read_text())
    with pytest.raises(Exception, match="lost"):
        await task
    for pid in (idle, int(path.read_text())):
        await eventually(lambda pid=pid: not is_running(pid))


async def test_what_cannot_be_sent_to_a_process_is_told_when_it_is_registered(mesh: Mesh) -> None:
    class Inner:
        @staticmethod
        @method(run_in="process")
        def crunch() -> int:
            return 1

    with pytest.raises(TypeError, match="crunch cannot run in a process.*@staticmethod"):
        mesh.b.register("inner", Inner())
