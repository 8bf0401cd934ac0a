"""To a handler it looks as if it had a task of its own, whoever it shares it with."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import anyio
import pytest

from lattica.rpc.runner import TURN, Rest, Runner

pytestmark = pytest.mark.anyio
Job = Callable[[], Coroutine[Any, Any, object]]
seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")


class Stage:
    """Runs jobs, and remembers the task that each was begun in."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.tasks: dict[Job, asyncio.Task[None]] = {}
        self.dropped: set[Job] = set()
        self.outcomes: dict[Job, object] = {}
        self.blocks: list[Job] = []
        self.runner: Runner[Job] = Runner(tasks, self, block_limit=0.05)

    def begin(self, job: Job, task: asyncio.Task[None]) -> Coroutine[Any, Any, object] | None:
        if job in self.dropped:
            return None
        self.tasks[job] = task
        return job()

    def returned(self, job: Job, value: object) -> Awaitable[None] | None:
        self.outcomes[job] = value
        return None

    def raised(self, job: Job, error: BaseException) -> None:
        self.outcomes[job] = error

    async def waits(self, job: Job, rest: Rest) -> None:
        try:
            self.outcomes[job] = await rest
        except BaseException as error:
            self.raised(job, error)

    def blocked(self, job: Job, seconds: float) -> None:
        assert seconds > 0.05
        self.blocks.append(job)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        yield Stage(tasks)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_jobs_that_wait_for_nothing_share_a_task_and_no_context(stage: Stage) -> None:
    order: list[str] = []

    def job(name: str) -> Job:
        async def run() -> None:
            order.append(f"{name} sees {seen.get()}")
            seen.set(name)

        return run

    jobs = [job("a"), job("b"), job("c")]
    for each in jobs:
        stage.runner.add(each)
    await settle()
    assert order == ["a sees nothing", "b sees nothing", "c sees nothing"]
    assert len(set(stage.tasks.values())) == 1


async def test_one_that_waits_keeps_its_task_and_context_and_stops_nobody(stage: Stage) -> None:
    go, order = asyncio.Event(), []

    async def waits() -> None:
        task = asyncio.current_task()
        seen.set("mine")
        async with asyncio.timeout(4):
            order.append("begun")
            await go.wait()
        assert asyncio.current_task() is task
        order.append(f"went on with {seen.get()}")

    async def short() -> None:
        order.append(f"short sees {seen.get()}")

    for job in (waits, short):
        stage.runner.add(job)
    await settle()
    assert order == ["begun", "short sees nothing"]
    assert stage.tasks[waits] is not stage.tasks[short]
    go.set()
    await settle()
    assert order[-1] == "went on with mine"


async def test_a_cancelled_job_takes_nobody_along(stage: Stage) -> None:
    ended: list[str] = []

    def waiting(name: str) -> Job:
        async def run() -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append(name)

        return run

    one, two = waiting("one"), waiting("two")
    stage.runner.add(one)
    stage.runner.add(two)
    await settle()
    stage.tasks[one].cancel()
    await settle()
    assert ended == ["one"]
    stage.tasks[two].cancel()
    await settle()
    assert ended == ["one", "two"]


async def test_a_job_that_cancels_its_task_and_ends_does_not_cancel_the_next(stage: Stage) -> None:
    outcome: list[str] = []

    async def cancels() -> None:
        stage.tasks[cancels].cancel()

    async def following() -> None:
        await asyncio.sleep(0)
        outcome.append("ended well")

    stage.runner.add(cancels)
    stage.runner.add(following)
    await settle()
    assert outcome == ["ended well"]


async def test_scopes_and_locks_hold_across_a_wait(stage: Stage) -> None:
    lock, outcome = anyio.Lock(), []

    async def scoped() -> None:
        with anyio.move_on_after(0.01) as scope:
            async with lock:
                await anyio.sleep(60)
        outcome.append(scope.cancelled_caught)
        async with lock, anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 0)
        outcome.append(True)

    stage.runner.add(scoped)
    while len(outcome) < 2:
        await asyncio.sleep(0.01)
    assert outcome == [True, True]


async def test_each_has_its_outcome_whether_it_waits_or_not(stage: Stage) -> None:
    async def value() -> int:
        return 1

    async def error() -> None:
        raise ValueError("at once")

    async def late_value() -> int:
        await asyncio.sleep(0)
        return 2

    async def late_error() -> None:
        await asyncio.sleep(0)
        raise ValueError("late")

    for job in (value, error, late_value, late_error):
        stage.runner.add(job)
    await settle()
    assert [repr(outcome) for outcome in stage.outcomes.values()] == [
        "1",
        "ValueError('at once')",
        "2",
        "ValueError('late')",
    ]


async def test_a_dropped_job_is_never_begun(stage: Stage) -> None:
    ran: list[int] = []

    async def job() -> None:
        ran.append(1)

    stage.dropped.add(job)
    stage.runner.add(job)
    await settle()
    assert not ran


async def test_many_short_jobs_let_others_have_their_turn(stage: Stage) -> None:
    done, looks = 0, []

    def look() -> None:
        looks.append(done)

    async def job() -> None:
        nonlocal done
        done += 1
        if done == 1:
            asyncio.get_running_loop().call_soon(look)

    jobs: list[Job] = [lambda: job() for _ in range(5 * TURN)]
    for each in jobs:
        stage.runner.add(each)
    while done < len(jobs):
        await asyncio.sleep(0)
    assert looks[0] <= TURN


async def test_jobs_that_come_while_the_group_ends_are_dropped_in_silence() -> None:
    ran: list[int] = []

    async def job() -> None:
        ran.append(1)

    async def ending() -> None:
        async with asyncio.TaskGroup() as tasks:
            stage = Stage(tasks)

            async def late() -> None:
                try:
                    await asyncio.sleep(60)
                finally:
                    stage.runner.add(job)

            tasks.create_task(late())
            await asyncio.sleep(0)
            raise ValueError("the end")

    with pytest.raises(ExceptionGroup):
        await ending()
    assert not ran


async def test_the_job_that_keeps_the_loop_is_told_apart_from_its_neighbours(stage: Stage) -> None:
    async def quick() -> None: ...

    async def at_once() -> None:
        time.sleep(0.06)  # noqa: ASYNC251

    async def before_it_waits() -> None:
        time.sleep(0.06)  # noqa: ASYNC251
        await asyncio.sleep(0)

    async def after_it_waits() -> None:
        await asyncio.sleep(0)
        time.sleep(0.06)  # noqa: ASYNC251

    async def another() -> None: ...

    for job in (quick, at_once, another, before_it_waits, after_it_waits):
        stage.runner.add(job)
    await settle()
    assert stage.blocks == [at_once, before_it_waits, after_it_waits]
