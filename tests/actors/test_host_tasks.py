"""Tasks on a host: real processes, real code."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest

from lattica.actors.failures import error_of
from lattica.actors.messages import Failure, Requirements
from lattica.actors.serialization import dumps
from lattica.config import ActorsConfig
from lattica.errors import LeaseRefusedError, TaskError
from tests.actors.hosting import (
    ALICE,
    BOB,
    Bench,
    eventually,
    hosting,
    new_id,
    read,
    task,
    value_of,
)

pytestmark = pytest.mark.anyio


def add(a: int, b: int) -> int:
    return a + b


async def test_a_task_runs_in_another_process(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        assert await bench.run(add, 2, 3) == 5
        pid = await bench.run(os.getpid)
        assert pid not in (os.getpid(), bench.host.forkserver_pid)


async def test_user_code_has_the_main_thread(tmp_path: Path) -> None:
    def on_main() -> bool:
        return threading.current_thread() is threading.main_thread()

    async with hosting(tmp_path) as bench:
        assert await bench.run(on_main)


async def test_an_async_function_is_awaited(tmp_path: Path) -> None:
    async def later(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1

    async with hosting(tmp_path) as bench:
        assert await bench.run(later, 1) == 2


async def test_workers_are_reused_for_their_submitter_only(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        first = await bench.run(os.getpid, peer=ALICE)
        assert await bench.run(os.getpid, peer=ALICE) == first
        assert await bench.run(os.getpid, peer=BOB) != first


async def test_several_returns_and_none(tmp_path: Path) -> None:
    def pair() -> tuple[int, str]:
        return 1, "two"

    async with hosting(tmp_path) as bench:
        assert await bench.run(pair, returns=(new_id(), new_id())) == [1, "two"]
        assert await bench.run(pair, returns=()) == []
        wrong = await bench.run(pair, returns=(new_id(),) * 3)
        assert {failure.type_name for failure in wrong} == {"ValueError"}
        assert "2 values, not 3" in wrong[0].message


async def test_large_arrays_go_both_ways_unchanged_and_aligned(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(3_000_000, dtype="float64").reshape(3, -1)

    def double(x: Any, y: Any) -> Any:
        assert x.flags.aligned
        assert y.flags.aligned
        return {"x": x * 2, "y": y[::-1]}

    async with hosting(tmp_path) as bench:
        result = await bench.run(double, array, numpy.arange(70_001, dtype="uint8"))
        assert (result["x"] == array * 2).all()
        assert (result["y"] == numpy.arange(70_001, dtype="uint8")[::-1]).all()


async def test_references_among_the_arguments_arrive_as_values(tmp_path: Path) -> None:
    """An owner puts the ids of top-level refs beside a pickle with placeholders."""
    from lattica.actors.serialization import ArgRef

    ref = new_id()
    async with hosting(tmp_path) as bench:
        async with anyio.create_task_group() as tasks:

            async def check() -> None:
                assert await bench.run(add, ArgRef(0), 3, arg_refs=(ref,)) == 45

            tasks.start_soon(check)
            await anyio.wait_all_tasks_blocked()
            bench.core.store(ref, dumps(42))
        lost = Failure("object_lost", "it is gone", may_have_run=False)
        bench.core.store(ref, lost)
        assert await bench.run(add, ArgRef(0), 3, arg_refs=(ref,)) == lost


class ShapeError(ValueError):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__(f"{rows}x{columns}")
        self.rows = rows


async def test_an_exception_arrives_with_its_class_traceback_and_peer(tmp_path: Path) -> None:
    def fails() -> None:
        raise ShapeError(2, 3)

    async with hosting(tmp_path) as bench:
        failure = await bench.run(fails)
        assert isinstance(failure, Failure)
        assert (failure.kind, failure.peer_name) == ("task", "tester")
        assert failure.message == "2x3"
        assert "raise ShapeError(2, 3)" in failure.traceback
        assert "worker_calls" not in failure.traceback
        error = error_of(failure)
        assert isinstance(error, TaskError)
        assert isinstance(error, ShapeError)
        assert error.rows == 2
        assert "tester" in str(error)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
async def test_no_exception_ends_a_task_worker(tmp_path: Path, error: type[BaseException]) -> None:
    def fails() -> None:
        raise error

    async with hosting(tmp_path) as bench:
        pid = await bench.run(os.getpid)
        failure = await bench.run(fails)
        assert (failure.kind, failure.type_name) == ("task", error.__name__)
        assert await bench.run(os.getpid) == pid


async def test_a_result_that_cannot_be_pickled_is_named(tmp_path: Path) -> None:
    def locked() -> Any:
        return {"lock": threading.Lock()}

    async with hosting(tmp_path) as bench:
        failure = await bench.run(locked)
        assert failure.kind == "serialization"
        assert "locked()" in failure.message
        assert "lock" in failure.message


async def test_an_argument_that_cannot_be_unpickled_is_the_tasks_failure(tmp_path: Path) -> None:
    class Broken:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    async with hosting(tmp_path) as bench:
        failure = await bench.run(add, Broken(), 1)
        assert (failure.kind, failure.type_name) == ("task", "ValueError")


async def test_a_message_above_the_limit_is_refused_with_its_size(tmp_path: Path) -> None:
    def large(size: int) -> bytearray:
        return bytearray(size)

    async with hosting(tmp_path, config=ActorsConfig(pipe_frame=1_000_000)) as bench:
        failure = await bench.run(large, 2_000_000)
        assert failure.kind == "serialization"
        assert "1000000 bytes" in failure.message
        failure = await bench.run(len, bytearray(2_000_000))
        assert failure.kind == "serialization"
        assert not failure.may_have_run
        assert await bench.run(len, b"abc") == 3


# ------------------------------------------------------------------------ death


async def test_a_killed_worker_is_told_with_signal_and_peer(tmp_path: Path) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async with hosting(tmp_path) as bench:
        failure = await bench.run(die)
        assert failure.kind == "worker_died"
        assert failure.may_have_run
        assert "SIGKILL" in failure.message
        assert "tester" in failure.message
        assert await bench.run(add, 1, 1) == 2


async def test_an_exit_code_is_told_with_the_last_words(tmp_path: Path) -> None:
    def leave() -> None:
        print("no such weights", flush=True)
        os._exit(3)

    async with hosting(tmp_path) as bench:
        failure = await bench.run(leave)
        assert failure.kind == "worker_died"
        assert "exited with code 3" in failure.message
        assert "no such weights" in failure.message


async def test_a_crash_in_native_code_is_told_with_its_stack(tmp_path: Path) -> None:
    def crash() -> None:
        import ctypes

        ctypes.string_at(0)

    async with hosting(tmp_path) as bench:
        failure = await bench.run(crash)
        assert "SIGSEGV" in failure.message
        [log] = bench.log_dir.glob("worker-*")
        assert "in crash" in read(log)


async def test_an_argument_that_cannot_be_fetched_fails_its_task_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lattica.actors.serialization import ArgRef
    from lattica.errors import ObjectLostError

    async def lost(*args: Any) -> Any:
        raise ObjectLostError("its owner is gone")

    async with hosting(tmp_path) as bench:
        monkeypatch.setattr(bench.core, "get", lost)
        failure = await bench.run(add, ArgRef(0), 1, arg_refs=(new_id(),))
        assert (failure.kind, failure.may_have_run) == ("object_lost", False)
        assert await bench.run(add, 1, 1) == 2


async def test_what_a_worker_started_ends_with_it(tmp_path: Path) -> None:
    def spawn_and_die(path: str) -> None:
        import subprocess

        both = [
            subprocess.Popen(["sleep", "600"]),
            subprocess.Popen(["sleep", "600"], start_new_session=True),
        ]
        Path(path).write_text(" ".join(str(each.pid) for each in both))
        os.kill(os.getpid(), signal.SIGKILL)

    path = tmp_path / "pids"
    async with hosting(tmp_path) as bench:
        failure = await bench.run(spawn_and_die, str(path))
        assert failure.kind == "worker_died"
        pids = [int(pid) for pid in read(path).split()]
        await eventually(lambda: not any(_runs(pid) for pid in pids))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# ----------------------------------------------------------------------- streams


async def _stream(bench: Bench, function: Any, *args: Any) -> AsyncIterator[Any]:
    lease = bench.lease()
    spec = task(function, *args, returns=(), stream=new_id())
    try:
        async with aclosing(bench.host.run_stream(ALICE, lease, spec)) as outcomes:
            async for outcome in outcomes:
                yield value_of(outcome)
    finally:
        bench.host.release(ALICE, lease)


def count(n: int, path: str) -> Iterator[int]:
    for i in range(n):
        Path(path).write_text(str(i))
        yield i


async def test_a_generator_streams_its_items(tmp_path: Path) -> None:
    async def agen(n: int) -> AsyncIterator[int]:
        for i in range(n):
            await asyncio.sleep(0)
            yield i

    async with hosting(tmp_path) as bench:
        items = [item async for item in _stream(bench, count, 100, str(tmp_path / "at"))]
        assert items == list(range(100))
        assert [item async for item in _stream(bench, agen, 50)] == list(range(50))
        assert [item async for item in _stream(bench, list, "abc")] == ["a", "b", "c"]


async def test_a_generator_waits_for_its_consumer(tmp_path: Path) -> None:
    path = tmp_path / "at"
    async with (
        hosting(tmp_path, config=ActorsConfig(stream_window=4)) as bench,
        aclosing(_stream(bench, count, 1000, str(path))) as items,
    ):
        assert await anext(items) == 0
        await eventually(lambda: read(path) >= "3")
        await anyio.sleep(0.1)  # time in which it must not go on
        assert int(read(path)) <= 5
        assert [await anext(items) for _ in range(50)] == list(range(1, 51))


async def test_dropping_a_stream_ends_its_generator(tmp_path: Path) -> None:
    def endless(path: str) -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            Path(path).write_text("closed")

    path = tmp_path / "closed"
    async with hosting(tmp_path) as bench:
        pid = await bench.run(os.getpid)
        async with aclosing(_stream(bench, endless, str(path))) as items:
            assert await anext(items) == 0
        assert read(path) == "closed"
        assert await bench.run(os.getpid) == pid


async def test_an_error_is_a_streams_last_item(tmp_path: Path) -> None:
    def fails() -> Iterator[int]:
        yield 1
        raise ValueError("enough")

    def dies() -> Iterator[int]:
        yield 1
        os.kill(os.getpid(), signal.SIGKILL)
        yield 2

    async with hosting(tmp_path) as bench:
        one, failure = [item async for item in _stream(bench, fails)]
        assert (one, failure.kind, failure.message) == (1, "task", "enough")
        one, failure = [item async for item in _stream(bench, dies)]
        assert (one, failure.kind) == (1, "worker_died")


# ------------------------------------------------------------------------ cancel


def sleep_long(path: str) -> str:
    Path(path).write_text("begun")
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        Path(path).write_text("interrupted")
        raise
    return "slept"


async def _cancelled(bench: Bench, function: Any, path: Path, *, force: bool) -> Any:
    lease = bench.lease()
    spec = task(function, str(path))
    result: Any = None

    async def run() -> None:
        nonlocal result
        [result] = await bench.host.run(ALICE, lease, spec)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await eventually(path.exists)
        bench.host.cancel(BOB, spec.task, force=force)  # not his: nothing happens
        bench.host.cancel(ALICE, spec.task, force=force)
    bench.host.release(ALICE, lease)
    return result


async def test_cancel_interrupts_a_blocking_call(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        pid = await bench.run(os.getpid)
        failure = await _cancelled(bench, sleep_long, tmp_path / "state", force=False)
        assert failure.kind == "cancelled"
        assert read(tmp_path / "state") == "interrupted"
        assert await bench.run(os.getpid) == pid


async def test_cancel_cancels_an_async_function(tmp_path: Path) -> None:
    async def waits(path: str) -> None:
        Path(path).write_text("begun")
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            Path(path).write_text("cancelled")
            raise

    async with hosting(tmp_path) as bench:
        failure = await _cancelled(bench, waits, tmp_path / "state", force=False)
        assert failure.kind == "cancelled"
        assert read(tmp_path / "state") == "cancelled"


async def test_force_ends_code_that_will_not_listen(tmp_path: Path) -> None:
    def stubborn(path: str) -> None:
        Path(path).write_text("begun")
        while True:
            try:
                time.sleep(600)
            except KeyboardInterrupt:
                continue

    async with hosting(tmp_path) as bench:
        failure = await _cancelled(bench, stubborn, tmp_path / "state", force=True)
        assert failure.kind == "cancelled"
        assert await bench.run(add, 1, 1) == 2


async def test_a_task_cancelled_before_it_began_did_not_run(tmp_path: Path) -> None:
    from lattica.actors.serialization import ArgRef

    async with hosting(tmp_path) as bench:
        lease = bench.lease()
        spec = task(add, ArgRef(0), 1, arg_refs=(new_id(),))
        outcomes: list[Any] = []

        async def run() -> None:
            outcomes.extend(await bench.host.run(ALICE, lease, spec))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await anyio.wait_all_tasks_blocked()
            bench.host.cancel(ALICE, spec.task, force=False)
        assert outcomes[0].kind == "cancelled"
        assert not outcomes[0].may_have_run


async def test_many_cancellations_hit_nothing_but_their_task(tmp_path: Path) -> None:
    """However close a cancellation comes to a task's end, the worker and its pipe survive."""

    def short(path: str) -> int:
        for _ in range(200):
            pass
        return 7

    async with hosting(tmp_path) as bench:
        pid = await bench.run(os.getpid)
        lease = bench.lease()
        kinds = set()
        for index in range(150):
            spec = task(short, "")
            async with anyio.create_task_group() as tasks:

                async def cancel(task_id: bytes = spec.task, wait: int = index % 30) -> None:
                    for _ in range(wait):
                        await asyncio.sleep(0)
                    bench.host.cancel(ALICE, task_id, force=False)

                tasks.start_soon(cancel)
                [outcome] = await bench.host.run(ALICE, lease, spec)
            kinds.add(outcome.kind if isinstance(outcome, Failure) else value_of(outcome))
        assert kinds <= {"cancelled", 7}
        bench.host.release(ALICE, lease)
        assert await bench.run(os.getpid) == pid


async def test_a_task_whose_caller_is_gone_is_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "state"
    async with hosting(tmp_path) as bench:
        lease = bench.lease()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.host.run, ALICE, lease, task(sleep_long, str(path)))
            await eventually(path.exists)
            tasks.cancel_scope.cancel()
        assert read(path) == "interrupted"
        [outcome] = await bench.host.run(ALICE, lease, task(add, 1, 2))
        assert value_of(outcome) == 3


async def test_tasks_of_one_lease_take_turns(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        lease = bench.lease()
        results = []

        async def run(i: int) -> None:
            [outcome] = await bench.host.run(ALICE, lease, task(add, i, 0))
            results.append(value_of(outcome))

        async with anyio.create_task_group() as tasks:
            for i in range(20):
                tasks.start_soon(run, i)
        assert sorted(results) == list(range(20))
        assert len(bench.host.worker_pids()) == 1


async def test_more_functions_than_a_worker_keeps(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        lease = bench.lease()
        made = [eval(f"lambda: {i}") for i in range(300)]  # noqa: S307
        for _ in range(2):
            for i, function in enumerate(made):
                [outcome] = await bench.host.run(ALICE, lease, task(function))
                assert value_of(outcome) == i


async def test_no_lease_no_task(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        lease = bench.lease(ALICE)
        for peer, name in ((BOB, lease), (ALICE, b"x" * 16)):
            with pytest.raises(LeaseRefusedError):
                await bench.host.run(peer, name, task(add, 1, 2))
        assert bench.host.counters["refused:lease"] == 2
        assert Requirements() == Requirements(cpus=1.0)
