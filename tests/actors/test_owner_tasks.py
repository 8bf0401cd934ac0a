from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import lattica
from lattica.actors.context import current
from lattica.actors.messages import Failure
from lattica.config import ActorsConfig
from lattica.errors import (
    GetTimeoutError,
    NoPlacementError,
    ObjectLostError,
    TaskCancelledError,
    TaskError,
    WorkerDiedError,
)
from lattica.identity import grants
from tests.actors.mesh import mesh_of, ready, until

pytestmark = pytest.mark.anyio

LIMIT = 45  # seconds any of these may take on a busy machine


@lattica.remote
def square(x: int) -> int:
    return x * x


@lattica.remote
def where() -> str:
    time.sleep(0.2)
    return lattica.get_runtime_context().peer_name


@lattica.remote
def nested(n: int) -> int:
    values: list[int] = lattica.get([square.remote(i) for i in range(n)])
    return sum(values)


@lattica.remote
def count_up(n: int) -> Iterator[int]:
    yield from range(n)
    if n == 3:
        raise ValueError("no more")


@lattica.remote
def append_line(path: str, line: str) -> None:
    with open(path, "a") as file:
        file.write(line + "\n")


class AwkwardError(Exception):
    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


@lattica.remote
def fail(kind: str) -> None:
    if kind == "awkward":
        raise AwkwardError(7, "detail")
    if kind == "key":
        raise KeyError("missing")
    os._exit(3)


@lattica.remote
def total(array: Any) -> float:
    return float(array.sum())


@lattica.remote
def make_array(n: int) -> Any:
    return np.ones(n)


async def test_a_burst_keeps_its_order_and_a_lone_task_works_too(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            results = await asyncio.gather(*[square.remote(i) for i in range(20)])
            assert results == [i * i for i in range(20)]
            assert await square.remote(7) == 49


async def test_tasks_spread_over_the_peers_of_a_mesh(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", "b", "c", cpus=1.0) as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            names = await asyncio.gather(*[where.remote() for _ in range(9)])
            assert set(names) == {"a", "b", "c"}


async def test_refs_are_arguments_and_values_cross_peers(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", "b") as mesh:
        b = mesh["b"].peer
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            there = make_array.options(peer=b).remote(100_000)
            assert await total.options(peer=b).remote(there) == 100_000
            put = lattica.put(np.full(100_000, 2.0))
            assert await total.options(peer=b).remote(put) == 200_000
            assert await total.options(peer=b).remote(np.full(100_000, 3.0)) == 300_000


async def test_a_task_can_run_tasks_and_its_resources_are_not_wanted_meanwhile(
    tmp_path: Path,
) -> None:
    async with mesh_of(tmp_path, "a", cpus=1.0) as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            assert await nested.remote(4) == 14


async def test_a_users_exception_is_both_its_class_and_a_task_error(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", "b") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            there = fail.options(peer=mesh["b"].peer)
            with pytest.raises(AwkwardError) as caught:
                await there.remote("awkward")
            error = caught.value
            assert isinstance(error, TaskError)
            assert error.code == 7
            assert error.peer_name == "b"
            assert "7: detail" in str(error)
            assert "on b" in str(error)
            assert "raise AwkwardError(7" in error.remote_traceback
            assert isinstance(error.cause, AwkwardError)
            with pytest.raises(KeyError):
                await there.remote("key")


async def test_an_error_passes_through_tasks_that_depend_on_it(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT), pytest.raises(KeyError):
            await square.remote(fail.remote("key"))


async def test_a_dead_worker_is_an_error_unless_retries_are_asked_for(tmp_path: Path) -> None:
    marker = str(tmp_path / "runs")

    @lattica.remote
    def die_once() -> str:
        with open(marker, "a") as file:
            file.write("x")
        if os.path.getsize(marker) == 1:
            os._exit(1)
        return "second time"

    async with mesh_of(tmp_path, "a") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            with pytest.raises(WorkerDiedError) as caught:
                await fail.remote("exit")
            assert caught.value.peer_name == "a"
            assert caught.value.may_have_run
            assert await die_once.options(max_retries=1).remote() == "second time"


async def test_a_stream_is_consumed_as_it_is_made(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", "b") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            stream = count_up.options(peer=mesh["b"].peer).remote(5)
            assert [await ref async for ref in stream] == [0, 1, 2, 3, 4]
            refs = [ref async for ref in count_up.remote(3)]
            assert await asyncio.gather(*refs[:3]) == [0, 1, 2]
            with pytest.raises(ValueError, match="no more"):
                await refs[3]


async def test_several_returns(tmp_path: Path) -> None:
    @lattica.remote(num_returns=2)
    def both() -> tuple[int, int]:
        return 1, 2

    async with mesh_of(tmp_path, "a") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            first, second = both.remote()
            assert (await first, await second) == (1, 2)


async def test_a_resource_nobody_offers_says_what_is_on_offer(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", "b") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            with pytest.raises(NoPlacementError) as caught:
                await square.options(resources={"tpu": 1}).remote(1)
            assert "tpu: 1" in str(caught.value)
            assert "a offers CPU: 2" in str(caught.value)
            assert "b offers CPU: 2" in str(caught.value)


async def test_a_custom_resource_and_a_label_choose_the_peer(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a") as mesh:
        await mesh.add("b", resources={"tpu": 1.0})
        await mesh.add("c", labels={"zone": "attic"})
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            assert await where.options(resources={"tpu": 1}).remote() == "b"
            assert await where.options(labels={"zone": "attic"}).remote() == "c"


async def test_work_waits_while_all_are_busy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @lattica.remote
    def hold(path: str) -> None:
        while not os.path.exists(path):
            time.sleep(0.02)

    config = ActorsConfig(place_timeout=0.3)
    async with mesh_of(tmp_path, "a", cpus=1.0, config=config) as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            holding = hold.remote(str(tmp_path / "go"))
            waiting = square.options(num_cpus=0.5).remote(3)
            assert await ready([waiting], 1, 1.0) == [False]
            assert "square waits since" in caplog.text
            (tmp_path / "go").touch()
            assert await waiting == 9
            await holding


async def test_a_queued_and_a_running_task_are_cancelled(tmp_path: Path) -> None:
    @lattica.remote
    def sleep(seconds: float) -> None:
        time.sleep(seconds)

    async with mesh_of(tmp_path, "a", cpus=1.0) as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            running = sleep.remote(60)
            assert await ready([running], 1, 1.0) == [False]
            queued = square.remote(1)
            lattica.cancel(queued)
            with pytest.raises(TaskCancelledError):
                await queued
            lattica.cancel(running, force=True)
            with pytest.raises(TaskCancelledError):
                await running
            assert await square.remote(2) == 4


async def test_a_lost_peer_fails_its_tasks_at_once_or_they_run_elsewhere(tmp_path: Path) -> None:
    @lattica.remote
    def stay(path: str) -> str:
        with open(path, "a") as file:
            file.write("x")
        if lattica.get_runtime_context().peer_name == "b":
            time.sleep(60)
        return lattica.get_runtime_context().peer_name

    async with mesh_of(tmp_path, "a", cpus=0.0) as mesh:
        await mesh.add("b")
        path = str(tmp_path / "started")
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            once = stay.remote(path)
            again = stay.options(max_retries=2).remote(path)
            await until(lambda: os.path.exists(path) and os.path.getsize(path) == 2)
            await mesh.add("c")
            await mesh["b"].vanish()
            with pytest.raises(WorkerDiedError, match=r"peer b was lost.*may have run"):
                await once
            assert await again == "c"


async def test_an_owner_that_is_gone_takes_its_values_with_it(tmp_path: Path) -> None:
    @lattica.remote
    def make_ref() -> list[lattica.ObjectRef]:
        return [lattica.put("inside")]

    async with mesh_of(tmp_path, "a", "b") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            [inner] = await make_ref.options(peer=mesh["b"].peer).remote()
            assert inner.id.owner == mesh["b"].peer
            [second] = await make_ref.options(peer=mesh["b"].peer).remote()
            assert await inner == "inside"
            await mesh["b"].vanish()
            with pytest.raises(ObjectLostError, match="owner b"):
                await second


async def test_get_past_its_timeout(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            await square.remote(1)  # a worker is up
            slow = where.remote()
            context = current()
            with pytest.raises(GetTimeoutError, match=r"1 of 1 values were not ready after 0.01 s"):
                await context.run_async(context.core.get, [slow.id], 0.01)
            assert await slow == "a"


async def test_values_are_freed_with_their_last_ref(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            objects = mesh["a"].owner.objects
            ref = lattica.put(np.zeros(1_000_000))
            await until(lambda: objects.nbytes > 8_000_000)
            assert (await ref).nbytes == 8_000_000
            del ref
            await until(lambda: objects.nbytes == 0)


async def test_work_is_not_given_to_peers_without_a_host_grant(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", cpus=0.0) as mesh:
        await mesh.add("guest", scopes=(grants.CALL, grants.SUBMIT), cpus=8.0)
        await mesh.add("member", cpus=1.0)
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            assert await where.remote() == "member"


async def test_a_stranger_neither_submits_nor_fetches(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", cpus=2.0) as mesh:
        stranger = await mesh.add("stranger", scopes=(grants.CALL,), cpus=0.0)
        target = tmp_path / "pwned"
        secret = None
        with mesh["a"].driver():
            secret = lattica.put("secret").id
            with stranger.driver(), anyio.fail_after(LIMIT):
                ref = append_line.remote(str(target), "x")
                assert await ready([ref], 1, 3.0) == [False]  # nobody takes its work
                assert not target.exists()
                [outcome] = await stranger.owner.get([secret], 5.0)
                assert isinstance(outcome, Failure)
                assert "grant" in outcome.message
                assert mesh["a"].owner.counters["refused:objects"] >= 1


async def test_a_value_of_an_owner_without_a_grant_is_not_unpickled(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a") as mesh:
        stranger = await mesh.add("stranger", scopes=(grants.CALL,), cpus=0.0)
        with stranger.driver():
            theirs = lattica.put("a pickle of theirs")
            await ready([theirs], 1, 5.0)
            with mesh["a"].driver() as a, anyio.fail_after(LIMIT):
                [outcome] = await a.owner.get([theirs.id], 5.0)
                assert isinstance(outcome, Failure)
                assert outcome.kind == "refused"


async def test_a_generator_that_nobody_reads_any_more_is_stopped(tmp_path: Path) -> None:
    ended = tmp_path / "ended"

    @lattica.remote
    def forever() -> Iterator[int]:
        try:
            while True:
                yield 0
                time.sleep(0.01)
        finally:
            ended.touch()

    async with mesh_of(tmp_path, "a") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            stream = forever.remote()
            assert await (await anext(stream)) == 0
            assert not ended.exists()
            del stream
            await until(ended.exists)


async def test_many_tasks_do_not_pile_up_objects_or_threads(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            before = threading.active_count()
            for _ in range(3):
                await asyncio.gather(*[square.remote(i) for i in range(100)])
            while len(mesh["a"].owner.objects) > 0:
                await anyio.sleep(0.5)
                print(mesh["a"].owner.objects._slots)
            assert threading.active_count() <= before + 2
