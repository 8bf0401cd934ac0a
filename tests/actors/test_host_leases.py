"""What a host promises, declines and takes back."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.actors.context import current
from lattica.actors.leases import Ledger
from lattica.actors.messages import (
    Failure,
    LeaseReply,
    LeaseRequest,
    ObjectId,
    Requirements,
)
from lattica.actors.serialization import dumps, loads
from lattica.clock import ManualClock
from lattica.config import ActorsConfig
from tests.actors.hosting import ALICE, BOB, HOST, Bench, eventually, hosting, task, value_of
from tests.actors.test_host_actors import Counter

pytestmark = pytest.mark.anyio


def ask(bench: Bench, peer: Any = ALICE, **requirements: Any) -> LeaseReply:
    return bench.host.lease(peer, LeaseRequest(Requirements(**requirements), "task", "it"))


async def test_a_lease_takes_resources_and_gives_them_back(tmp_path: Path) -> None:
    async with hosting(tmp_path, resources={"CPU": 2, "memory": 1e9, "robot": 1}) as bench:
        reply = ask(bench, cpus=1.5, memory=400_000_000, resources={"robot": 0.5})
        assert reply.lease is not None
        info = bench.host.node_info()
        assert info.total["CPU"] == 2
        assert info.available == {"CPU": 0.5, "GPU": 0.0, "memory": 6e8, "robot": 0.5}
        assert info.load == 0.75
        bench.host.release(BOB, reply.lease)  # not his
        assert bench.host.node_info().available["CPU"] == 0.5
        bench.host.release(ALICE, reply.lease)
        assert bench.host.node_info().available == info.total


async def test_a_refusal_says_what_is_short_and_whether_to_come_again(tmp_path: Path) -> None:
    labels = {"zone": "attic"}
    async with hosting(tmp_path, resources={"CPU": 2, "robot": 1}, labels=labels) as bench:
        assert ask(bench, cpus=1.5).lease is not None
        for requirements, text, later in (
            ({"cpus": 1.0}, "1 CPU wanted, 0.5 of 2 free", True),
            ({"cpus": 4.0}, "4 CPU wanted, it has 2", False),
            ({"cpus": 0.0, "resources": {"robot": 2.0}}, "2 robot wanted, it has 1", False),
            ({"cpus": 0.0, "resources": {"arm": 1.0}}, "1 arm wanted, it has 0", False),
            ({"labels": {"zone": "cellar"}}, "zone=cellar", False),
            ({"resources": {"CPU": 0.1}}, "parameter of its own", False),
            ({"cpus": -1.0}, "no amount", False),
            ({"cpus": float("nan")}, "no amount", False),
        ):
            reply = ask(bench, **requirements)
            assert reply.lease is None
            assert text in reply.reason
            assert (reply.retry_after > 0) is later
        here, elsewhere = (
            bench.host.lease(ALICE, LeaseRequest(Requirements(0.5, peer=peer), "task", "it"))
            for peer in (HOST, BOB)
        )
        assert here.lease is not None
        assert "is not" in elsewhere.reason
        assert ask(bench, cpus=0.0, labels=labels).lease is not None


def lose_link(bench: Bench, peer: Any) -> None:
    for listener in tuple(bench.links.listeners):
        listener(SimpleNamespace(remote=SimpleNamespace(peer=peer)), False)


async def test_the_work_of_an_owner_that_is_gone_ends_after_the_ttl(tmp_path: Path) -> None:
    clock = ManualClock()
    async with hosting(tmp_path, clock=clock) as bench:
        alices = await bench.create(Counter, peer=ALICE)
        bobs = await bench.create(Counter, peer=BOB)
        lose_link(bench, ALICE)
        clock.advance(5)
        bench.host.sweep()
        assert await alices.call("add") == 1
        clock.advance(6)
        bench.host.sweep()
        await alices.until("dead")
        failure = await alices.call("add")
        assert "is gone" in failure.message
        assert await bobs.call("add") == 1
        assert bench.host.counters["lease:owner_gone"] == 1


async def test_renewal_keeps_the_lease_of_an_owner_without_a_link(tmp_path: Path) -> None:
    clock = ManualClock()
    async with hosting(tmp_path, clock=clock) as bench:
        counter = await bench.create(Counter)
        lose_link(bench, ALICE)
        for _ in range(5):
            clock.advance(8)
            assert bench.host.renew(ALICE, counter.lease)
            bench.host.sweep()
        assert await counter.call("add") == 1
        assert not bench.host.renew(BOB, counter.lease)
        assert not bench.host.renew(ALICE, b"unknown")


async def test_a_lease_that_nobody_uses_ends(tmp_path: Path) -> None:
    clock = ManualClock()
    async with hosting(tmp_path, clock=clock) as bench:
        lease = bench.lease()
        clock.advance(11)
        bench.host.sweep()
        assert not bench.host.renew(ALICE, lease)
        assert bench.host.node_info().available["CPU"] == 8.0


async def test_releasing_a_lease_ends_what_runs_on_it(tmp_path: Path) -> None:
    def wait(path: str) -> None:
        import time

        Path(path).write_text("begun")
        time.sleep(600)

    async with hosting(tmp_path) as bench:
        counter = await bench.create(Counter)
        bench.host.release(ALICE, counter.lease)
        await counter.until("dead")
        path, lease = tmp_path / "begun", bench.lease()
        run = asyncio.create_task(bench.host.run(ALICE, lease, task(wait, str(path))))
        await eventually(path.exists)
        bench.host.release(ALICE, lease)
        [failure] = await run
        assert isinstance(failure, Failure)
        assert failure.kind == "cancelled"
        assert "released" in failure.message
        await eventually(lambda: bench.host.worker_pids() == [])


async def test_who_waits_for_other_results_lends_its_cpus(tmp_path: Path) -> None:
    """Else a task that waits for a task that needs its CPU would wait for ever."""

    def wait(path: str) -> int:
        here = current()
        ident = ObjectId(here.core.owner, b"later")
        [value] = here.run(here.core.get, [ident], None)
        while not os.path.exists(path):
            pass
        return int(loads(value))

    path = tmp_path / "go"
    async with hosting(tmp_path, resources={"CPU": 1}) as bench:
        outer = bench.lease(cpus=1.0)
        run = asyncio.create_task(bench.host.run(ALICE, outer, task(wait, str(path))))
        assert ask(bench, cpus=1.0).lease is None
        await eventually(lambda: bench.host.node_info().available["CPU"] == 1.0)
        assert await bench.run(abs, -4, requirements={"cpus": 1.0}) == 4
        inner = bench.lease(cpus=1.0)
        bench.core.store(ObjectId(HOST, b"later"), dumps(7))
        await eventually(lambda: bench.host._ledger.available["CPU"] == -1.0)
        reply = ask(bench, cpus=0.5)
        assert "0 of 1 free" in reply.reason
        assert bench.host.node_info().available["CPU"] == 0.0
        path.write_text("")
        [outcome] = await run
        assert value_of(outcome) == 7
        bench.host.release(ALICE, inner)
        bench.host.release(ALICE, outer)
        assert bench.host.node_info().available["CPU"] == 1.0


async def test_a_lender_that_dies_leaves_the_books_right(tmp_path: Path) -> None:
    def wait() -> None:
        here = current()
        here.run(here.core.get, [here.new_object_id()], None)

    async with hosting(tmp_path, resources={"CPU": 1}) as bench:
        lease = bench.lease(cpus=1.0)
        run = asyncio.create_task(bench.host.run(ALICE, lease, task(wait)))
        await eventually(lambda: bench.host.node_info().available["CPU"] == 1.0)
        os.kill(bench.host.worker_pids()[0], 9)
        [failure] = await run
        assert isinstance(failure, Failure)
        assert failure.kind == "worker_died"
        assert bench.host.node_info().available["CPU"] == 0.0
        bench.host.release(ALICE, lease)
        assert bench.host.node_info().available["CPU"] == 1.0


async def test_an_actor_and_its_lease_are_used_once(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        counter = await bench.create(Counter)
        failure = await bench.host.create_actor(ALICE, bench.lease(), counter.spec)
        assert failure is not None
        assert failure.kind == "refused"
        assert await counter.call("add") == 1


async def test_idle_workers_are_few_and_end_in_time(tmp_path: Path) -> None:
    clock = ManualClock()
    async with hosting(tmp_path, clock=clock, config=ActorsConfig(idle_workers=2)) as bench:
        leases = [bench.lease() for _ in range(4)]
        async with anyio.create_task_group() as tasks:
            for lease in leases:
                tasks.start_soon(bench.host.run, ALICE, lease, task(os.getpid))
        for lease in leases:
            bench.host.release(ALICE, lease)
        await eventually(lambda: len(bench.host.worker_pids()) == 2)
        clock.advance(61)
        bench.host.sweep()
        await eventually(lambda: bench.host.worker_pids() == [])


async def test_gpus_are_given_out_by_index(tmp_path: Path) -> None:
    def visible() -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]

    async with hosting(tmp_path, resources={"GPU": 3}) as bench:
        assert await bench.run(visible) == ""
        half = ask(bench, cpus=0.0, gpus=0.5)
        assert await bench.run(visible, requirements={"gpus": 2.0}) == "1,2"
        assert await bench.run(visible, requirements={"gpus": 0.5}) == "0"
        assert half.lease is not None
        assert ask(bench, cpus=0.0, gpus=0.4).lease is not None
        for _ in range(2):
            assert ask(bench, cpus=0.0, gpus=0.8).lease is not None
        split = ask(bench, cpus=0.0, gpus=0.4)
        assert "none has so much" in split.reason
        assert split.retry_after > 0


_amounts = st.floats(0, 4).map(lambda x: round(x, 2))


@given(
    st.lists(
        st.tuples(st.booleans(), _amounts, st.sampled_from([0, 0.25, 0.5, 1, 2]), _amounts),
        max_size=40,
    )
)
async def test_the_ledger_never_promises_more_than_there_is(steps: list[Any]) -> None:
    total = {"CPU": 4.0, "GPU": 2.0, "memory": 10.0, "arm": 3.0}
    ledger = Ledger(total, {})
    held: list[tuple[Requirements, tuple[int, ...]]] = []
    for take, cpus, gpus, arms in steps:
        if take:
            wanted = Requirements(cpus=cpus, gpus=gpus, resources={"arm": arms})
            if ledger.refusal(wanted) is None:
                held.append((wanted, ledger.take(wanted)))
        elif held:
            ledger.give_back(*held.pop())
        for name, amount in ledger.available.items():
            assert 0 <= amount <= total[name]
    while held:
        ledger.give_back(*held.pop())
    assert ledger.available == total
