"""Actors on a host: one process each, calls in order, restarts in place."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from lattica.actors.messages import Failure
from lattica.actors.serialization import ArgRef, dumps
from tests.actors.hosting import (
    ALICE,
    BOB,
    Actor,
    Bench,
    actor,
    eventually,
    hosting,
    new_id,
    read,
    touch,
    value_of,
)

pytestmark = pytest.mark.anyio


class Counter:
    def __init__(self, start: int = 0) -> None:
        self.total = start

    def add(self, k: int = 1) -> int:
        self.total += k
        return self.total

    def pid(self) -> int:
        return os.getpid()

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def leave(self) -> None:
        sys.exit(0)

    def fail(self) -> None:
        raise ValueError("no")

    def wait_for(self, path: str) -> str:
        while not os.path.exists(path):
            time.sleep(0.001)
        return path

    def items(self, n: int) -> Iterator[int]:
        for i in range(n):
            self.total = i
            yield i


async def test_an_actor_keeps_its_state_in_its_own_process(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        one, two = await bench.create(Counter, 40), await bench.create(Counter)
        assert await one.call("add", 2) == 42
        assert await two.call("add", 1) == 1
        assert await one.call("pid") == one.pid != two.pid
        assert bench.host.node_info().actors == 2


async def test_calls_of_one_caller_run_in_the_order_made(tmp_path: Path) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.seen: list[tuple[str, int]] = []

        def note(self, who: str, number: int) -> None:
            self.seen.append((who, number))

        def all(self) -> list[tuple[str, int]]:
            return self.seen

    async with hosting(tmp_path) as bench:
        recorder = await bench.create(Recorder)
        late = {number: new_id() for number in range(0, 200, 7)}

        async def caller(peer: Any, who: str) -> None:
            async with anyio.create_task_group() as calls:
                for number in range(200):
                    ref = late.get(number) if who == "alice" else None
                    arguments: tuple[Any, ...] = (who, number)
                    options: dict[str, Any] = {"peer": peer}
                    if ref is not None:
                        arguments, options["arg_refs"] = (who, ArgRef(0)), (ref,)
                    calls.start_soon(_call, recorder, "note", arguments, options)
                    if number % 50 == 0:
                        await asyncio.sleep(0)

        async def deliver() -> None:
            for number in random.Random(1).sample(sorted(late), len(late)):
                bench.core.store(late[number], dumps(number))
                await asyncio.sleep(0.001)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(caller, ALICE, "alice")
            tasks.start_soon(caller, BOB, "bob")
            tasks.start_soon(deliver)
        seen = await recorder.call("all")
        for who in ("alice", "bob"):
            assert [number for name, number in seen if name == who] == list(range(200))


async def _call(actor: Actor, method: str, arguments: tuple[Any, ...], options: Any) -> None:
    assert not isinstance(await actor.call(method, *arguments, **options), Failure)


async def test_one_callers_missing_argument_does_not_hold_up_another(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        counter = await bench.create(Counter)
        ref, results = new_id(), []

        async def alice() -> None:
            results.append(await counter.call("add", ArgRef(0), arg_refs=(ref,)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(alice)
            await anyio.wait_all_tasks_blocked()
            assert await counter.call("add", 1, peer=BOB) == 1
            bench.core.store(ref, dumps(10))
        assert results == [11]


async def test_an_argument_that_failed_fails_the_call_and_no_other(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        counter = await bench.create(Counter)
        ref = new_id()
        bench.core.store(ref, Failure("object_lost", "gone"))
        failure = await counter.call("add", ArgRef(0), arg_refs=(ref,))
        assert failure.kind == "object_lost"
        assert await counter.call("add") == 1


async def test_errors_leave_the_actor_alive(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        counter = await bench.create(Counter)
        failure = await counter.call("fail")
        assert (failure.kind, failure.type_name) == ("task", "ValueError")
        failure = await counter.call("no_such_method")
        assert failure.type_name == "AttributeError"
        assert await counter.call("add") == 1


async def test_an_async_actor_overlaps_its_calls(tmp_path: Path) -> None:
    class Meeting:
        def __init__(self) -> None:
            self.loop = asyncio.get_running_loop()
            self.here = 0
            self.full = asyncio.Event()

        async def join(self, size: int) -> int:
            assert asyncio.get_running_loop() is self.loop
            self.here += 1
            if self.here == size:
                self.full.set()
            await self.full.wait()
            return self.here

        def count(self) -> int:
            return self.here

        async def numbers(self, n: int) -> AsyncIterator[int]:
            for i in range(n):
                await asyncio.sleep(0)
                yield i

    async with hosting(tmp_path) as bench:
        meeting = await bench.create(Meeting)
        results = await asyncio.gather(*(meeting.call("join", 50) for _ in range(50)))
        assert results == [50] * 50
        assert await meeting.call("count") == 50
        assert await _items(meeting, "numbers", 40) == list(range(40))


async def test_threads_overlap_up_to_their_number(tmp_path: Path) -> None:
    class Meeting:
        def __init__(self) -> None:
            self.barrier = threading.Barrier(3)
            self.lock = threading.Lock()
            self.now = self.most = 0

        def join(self) -> int:
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            self.barrier.wait(10)
            with self.lock:
                self.now -= 1
            return self.most

    async with hosting(tmp_path) as bench:
        meeting = await bench.create(Meeting, max_concurrency=3)
        results = await asyncio.gather(*(meeting.call("join") for _ in range(9)))
        assert max(results) == 3


async def test_a_method_may_stream(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        counter = await bench.create(Counter)
        assert await _items(counter, "items", 100) == list(range(100))
        stream = counter.message("items", 100_000, returns=(), stream=new_id())
        async with aclosing(bench.host.call_stream(ALICE, stream)) as outcomes:
            assert value_of(await anext(outcomes)) == 0
        # The generator was closed, or this call would wait behind it.
        assert await counter.call("add", 0) < 100


async def _items(actor: Actor, method: str, *args: Any) -> list[Any]:
    message = actor.message(method, *args, returns=(), stream=new_id())
    async with aclosing(actor.host.call_stream(ALICE, message)) as outcomes:
        return [value_of(outcome) async for outcome in outcomes]


# -------------------------------------------------------------------- construction


async def test_a_constructor_that_raises_is_told_and_frees_the_lease(tmp_path: Path) -> None:
    class Fails:
        def __init__(self) -> None:
            raise ValueError("no such model")

    async with hosting(tmp_path) as bench:
        before = bench.host.node_info().available
        spec = actor(Fails)
        failure = await bench.host.create_actor(ALICE, bench.lease(), spec)
        assert failure is not None
        assert (failure.kind, failure.type_name) == ("task", "ValueError")
        assert failure.message == "no such model"
        await eventually(lambda: bench.host.node_info().available == before)
        await eventually(lambda: bench.host.worker_pids() == [])
        dead = await Actor(bench.host, spec, b"").call("x")
        assert dead.kind == "actor_died"
        assert "no such model" in dead.message
        assert not dead.may_have_run


async def test_a_constructor_that_dies_is_tried_as_often_as_restarts_allow(
    tmp_path: Path,
) -> None:
    class Dies:
        def __init__(self, path: str) -> None:
            with open(path, "a") as file:
                file.write("x")
            os._exit(7)

    async with hosting(tmp_path) as bench:
        path = tmp_path / "tries"
        spec = actor(Dies, str(path), max_restarts=2)
        failure = await bench.host.create_actor(ALICE, bench.lease(), spec)
        assert failure is not None
        assert failure.kind == "actor_died"
        assert "exited with code 7" in failure.message
        assert read(path) == "xxx"


async def test_calls_wait_for_the_constructor(tmp_path: Path) -> None:
    class Slow(Counter):
        def __init__(self) -> None:
            super().__init__()
            time.sleep(0.1)

    async with hosting(tmp_path) as bench:
        lease, spec = bench.lease(), actor(Slow)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.host.create_actor, ALICE, lease, spec)
            await anyio.wait_all_tasks_blocked()
            slow = Actor(bench.host, spec, lease)
            assert await slow.call("add") == 1


# ------------------------------------------------------------------ death, restart


async def test_a_crash_ends_an_actor_without_restarts(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        counter = await bench.create(Counter)
        pid = counter.pid
        failure = await counter.call("die")
        assert failure.kind == "actor_died"
        assert failure.may_have_run
        assert "SIGKILL" in failure.message
        assert str(pid) in failure.message
        assert "Counter on tester" in failure.message
        failure = await counter.call("add")
        assert failure.kind == "actor_died"
        assert not failure.may_have_run
        assert "did not run" in failure.message
        assert bench.host.node_info().available["CPU"] == 8.0


async def test_a_killed_process_comes_back_with_its_constructors_arguments(
    tmp_path: Path,
) -> None:
    async with hosting(tmp_path) as bench:
        counter = await bench.create(Counter, 40, max_restarts=1)
        assert await counter.call("add", 2) == 42
        pid = counter.pid
        os.kill(pid, signal.SIGKILL)
        await counter.until("alive", restarts=1)
        assert counter.pid != pid
        assert await counter.call("add", 2) == 42
        os.kill(counter.pid, signal.SIGKILL)
        await counter.until("dead")
        failure = await counter.call("add")
        assert failure.kind == "actor_died"
        assert "1 restart" in failure.message


async def test_only_the_call_in_flight_is_lost_in_a_restart(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        counter = await bench.create(Counter, max_restarts=-1)
        results = await asyncio.gather(
            counter.call("add"),
            counter.call("die"),
            *(counter.call("add") for _ in range(30)),
        )
        assert results[0] == 1
        assert results[1].kind == "actor_unavailable"
        assert results[1].may_have_run
        assert results[2:] == list(range(1, 31))


async def test_what_a_worker_said_before_it_died_counts_though_writing_to_it_fails(
    tmp_path: Path,
) -> None:
    """Else its last finished call would pass for the one in flight, and that one run twice."""

    class Mortal:
        def note(self, path: str) -> int:
            with open(path, "a") as file:
                file.write("note ")
            return 1

        def die(self, path: str) -> None:
            with open(path, "a") as file:
                file.write("die ")
            os.kill(os.getpid(), signal.SIGKILL)

    path = tmp_path / "ran"
    async with hosting(tmp_path) as bench:
        mortal = await bench.create(Mortal, max_restarts=-1)
        pid = mortal.pid
        calls = [asyncio.create_task(mortal.call(each, str(path))) for each in ("note", "die")]
        await asyncio.sleep(0)  # both are sent
        deadline = time.monotonic() + 5
        while _is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.001)  # noqa: ASYNC251 - the host must not hear of it yet
        # The first thing that the host does now is to write to a pipe without a reader.
        calls.append(asyncio.create_task(mortal.call("note", str(path))))
        first, second, third = await asyncio.gather(*calls)
        assert (first, third) == (1, 1)
        assert (second.kind, second.may_have_run) == ("actor_unavailable", True)
        assert read(path) == "note die note "


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_calls_that_overlap_may_all_have_run(tmp_path: Path) -> None:
    class Meeting:
        async def wait(self) -> None:
            await asyncio.sleep(600)

        def pid(self) -> int:
            return os.getpid()

    async with hosting(tmp_path) as bench:
        meeting = await bench.create(Meeting, max_restarts=1)
        pid = await meeting.call("pid")
        async with anyio.create_task_group() as tasks:
            results: list[Any] = []

            async def wait() -> None:
                results.append(await meeting.call("wait"))

            for _ in range(5):
                tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            os.kill(pid, signal.SIGKILL)
        assert {(each.kind, each.may_have_run) for each in results} == {("actor_unavailable", True)}
        assert await meeting.call("pid") != pid


async def test_nothing_runs_twice_or_never_over_many_crashes(tmp_path: Path) -> None:
    class Ledger:
        def __init__(self, path: str) -> None:
            self.path = path

        def write(self, number: int) -> int:
            with open(self.path, "a") as file:
                file.write(f"{number}\n")
            return number

        def pid(self) -> int:
            return os.getpid()

    path = tmp_path / "ledger"
    async with hosting(tmp_path) as bench:
        ledger = await bench.create(Ledger, str(path), max_restarts=-1)
        results: list[Any] = []

        async def write(number: int) -> None:
            results.append((number, await ledger.call("write", number)))

        async def crash() -> None:
            for restarts in range(3):
                await anyio.sleep(0.03)
                await ledger.until("alive", restarts=restarts)
                os.kill(ledger.pid, signal.SIGKILL)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(crash)
            for number in range(1500):
                tasks.start_soon(write, number)
                if number % 10 == 0:
                    await anyio.sleep(0.001)
        written = [int(line) for line in read(path).split()]
        assert len(set(written)) == len(written), "a call ran twice"
        assert written == sorted(written), "calls changed places"
        lost = {number for number, result in results if isinstance(result, Failure)}
        assert set(written) | lost == set(range(1500))
        assert len(lost) <= 3


async def test_an_actor_may_leave(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        counter = await bench.create(Counter, max_restarts=-1)
        failure = await counter.call("leave")
        assert failure.kind == "actor_died"
        assert "SystemExit(0)" in failure.message
        await counter.until("dead")


async def test_kill_is_final_unless_it_asks_for_a_restart(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        counter = await bench.create(Counter, max_restarts=-1)
        bench.host.kill(counter.spec.actor, no_restart=False, by="bob")
        await counter.until("alive", restarts=1)
        async with anyio.create_task_group() as tasks:
            failures: list[Any] = []

            async def blocked() -> None:
                failures.append(await counter.call("wait_for", str(tmp_path / "never")))

            tasks.start_soon(blocked)
            tasks.start_soon(blocked)
            await anyio.sleep(0.05)
            bench.host.kill(counter.spec.actor, no_restart=True, by="bob")
        assert [each.kind for each in failures] == ["actor_died"] * 2
        assert [each.may_have_run for each in failures] == [True, False]
        assert "killed by bob" in failures[0].message
        await eventually(lambda: bench.host.worker_pids() == [])


async def test_watch_tells_every_state(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        counter = await bench.create(Counter, max_restarts=1)
        states = []

        async def watch() -> None:
            async for state in bench.host.watch(counter.spec.actor):
                states.append((state.state, state.restarts))
                if state.state == "alive":
                    os.kill(state.pid, signal.SIGKILL)

        with anyio.fail_after(10):
            await watch()
        assert states[0] == ("alive", 0)
        assert ("alive", 1) in states
        assert states[-1] == ("dead", 1)
        unknown = [state async for state in bench.host.watch(b"nobody")]
        assert [state.state for state in unknown] == ["dead"]


# --------------------------------------------------------------------------- cancel


async def _cancel_second(bench: Bench, counter: Actor, path: Path) -> list[Any]:
    """Cancel a call that waits behind another one."""
    results: dict[str, Any] = {}
    second = counter.message("add", 1)

    async def first() -> None:
        results["first"] = await counter.call("wait_for", str(path))

    async def other() -> None:
        [outcome] = await bench.host.call(ALICE, second)
        results["second"] = value_of(outcome)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(other)
        await anyio.wait_all_tasks_blocked()
        bench.host.cancel(ALICE, second.task, force=False)
        await anyio.sleep(0.02)
        touch(path)
    return [results["first"], results["second"]]


async def test_a_call_cancelled_in_the_queue_does_not_run(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        counter = await bench.create(Counter)
        first, second = await _cancel_second(bench, counter, tmp_path / "go")
        assert first == str(tmp_path / "go")
        assert (second.kind, second.may_have_run) == ("cancelled", False)
        assert await counter.call("add", 0) == 0


async def test_cancel_interrupts_a_method_and_spares_the_actor(tmp_path: Path) -> None:
    class Sleeper:
        def nap(self, path: str) -> None:
            Path(path).write_text("asleep")
            while True:
                time.sleep(0.01)

        def pid(self) -> int:
            return os.getpid()

    async with hosting(tmp_path) as bench:
        for options in ({}, {"max_concurrency": 2}):
            sleeper = await bench.create(Sleeper, **options)
            path = tmp_path / f"nap{len(options)}"
            message = sleeper.message("nap", str(path))
            results: list[Any] = []

            async def nap(message: Any = message, results: list[Any] = results) -> None:
                results.extend(await bench.host.call(ALICE, message))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(nap)
                await eventually(path.exists)
                bench.host.cancel(ALICE, message.task, force=False)
            assert results[0].kind == "cancelled"
            assert await sleeper.call("pid") == sleeper.pid


async def test_a_caller_that_goes_away_does_not_interrupt_the_actor(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        counter = await bench.create(Counter)
        path = tmp_path / "go"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(counter.call, "wait_for", str(path))
            tasks.start_soon(counter.call, "add", 5)
            await anyio.sleep(0.05)
            tasks.cancel_scope.cancel()
        touch(path)
        assert await counter.call("add", 0) in (0, 5)
        assert counter.host.node_info().actors == 1
