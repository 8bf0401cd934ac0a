from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import psutil
import pytest

import lattica
from lattica.actors.context import current
from lattica.config import ActorsConfig
from lattica.errors import (
    ActorDiedError,
    ActorUnavailableError,
    NameTakenError,
    NoPlacementError,
    NoSuchActorError,
    TaskCancelledError,
    TaskError,
)
from lattica.identity.tickets import Contact
from tests.actors.mesh import mesh_of, ready, until

pytestmark = pytest.mark.anyio

LIMIT = 45  # seconds any of these may take on a busy machine


@lattica.remote
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.total = start
        self.seen: list[int] = []

    def add(self, k: int = 1) -> int:
        self.total += k
        return self.total

    def note(self, value: int) -> None:
        self.seen.append(value)

    def notes(self) -> list[int]:
        return self.seen

    def where(self) -> tuple[str, int]:
        return lattica.get_runtime_context().peer_name, os.getpid()

    def die(self) -> None:
        os._exit(1)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def size(self, array: Any) -> int:
        return int(array.size)

    def up_to(self, n: int) -> Iterator[int]:
        yield from range(n)


@lattica.remote
class Gate:
    def __init__(self) -> None:
        self.event = asyncio.Event()

    async def wait(self) -> str:
        await self.event.wait()
        return "open"

    async def open(self) -> None:
        self.event.set()

    async def ask(self, ref: list[Any]) -> Any:
        return await ref[0]


@lattica.remote
class Broken:
    def __init__(self) -> None:
        raise ValueError("cannot be made")

    def method(self) -> None: ...


@lattica.remote
def use(handle: Any, k: int) -> int:
    result: int = lattica.get(handle.add.remote(k))
    return result


async def find(name: str) -> Any:
    return await asyncio.to_thread(lattica.get_actor, name)


async def gone(pid: int) -> None:
    await until(lambda: not psutil.pid_exists(pid))


async def test_an_actor_keeps_state_and_order(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", "b") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            counter = Counter.options(peer=mesh["b"].peer).remote(40)
            refs = [counter.add.remote() for _ in range(100)]
            assert await asyncio.gather(*refs) == list(range(41, 141))
            assert (await counter.where.remote())[0] == "b"


async def test_order_holds_when_early_arguments_are_late_or_large(tmp_path: Path) -> None:
    @lattica.remote
    def slow(value: int) -> int:
        time.sleep(0.3)
        return value

    async with mesh_of(tmp_path, "a", "b") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            counter = Counter.options(peer=mesh["b"].peer).remote()
            counter.note.remote(slow.remote(0))
            counter.note.remote(slow.options(peer=mesh["b"].peer).remote(1))
            sizes = [counter.size.remote(np.zeros(20_000 * i)) for i in range(4)]
            for value in range(2, 8):
                counter.note.remote(value)
            assert await counter.notes.remote() == list(range(8))
            assert await asyncio.gather(*sizes) == [0, 20_000, 40_000, 60_000]


async def test_an_async_actor_overlaps_calls_and_awaits_refs(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            gate = Gate.remote()
            waiting = gate.wait.remote()
            assert await gate.ask.remote([lattica.put("inner")]) == "inner"
            await gate.open.remote()
            assert await waiting == "open"


async def test_a_handle_travels_to_a_task_on_another_peer(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", "b", "c") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            counter = Counter.options(peer=mesh["b"].peer).remote(1)
            there = use.options(peer=mesh["c"].peer)
            assert await there.remote(counter, 2) == 3
            assert await there.remote(counter, 3) == 6
            assert await counter.add.remote() == 7


async def test_a_named_actor_is_found_from_elsewhere_and_its_name_is_its_own(
    tmp_path: Path,
) -> None:
    async with mesh_of(tmp_path, "a", "b") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            counter = Counter.options(name="hits").remote(40)
            await counter.add.remote(2)
        with mesh["b"].driver(), anyio.fail_after(LIMIT):
            found = await find("hits")
            assert await found.add.remote() == 43
            with pytest.raises(TypeError, match=r"Counter.add\(\): too many positional"):
                found.add.remote(1, 2, 3)
            with pytest.raises(NameTakenError, match="'hits' is held by a live actor"):
                await asyncio.to_thread(Counter.options(name="hits").remote)
            # Within an event loop nothing may block, so there the first call tells.
            late = Counter.options(name="hits").remote()
            with pytest.raises(ActorDiedError, match="'hits' is held by a live actor"):
                await late.add.remote()
            await asyncio.to_thread(lattica.kill, found)
            with pytest.raises(NoSuchActorError, match="'hits'"):
                await find("hits")
            again = Counter.options(name="hits").remote(5)
            assert await again.add.remote() == 6


async def test_two_that_claim_a_name_at_once_do_not_both_get_it(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", "b", "c") as mesh:
        names = [member.owner._names for member in (mesh["a"], mesh["b"])]
        with mesh["a"].driver() as a, anyio.fail_after(LIMIT):
            one = Counter.options(name="x").remote()
            with mesh["b"].driver() as b:
                two = Counter.options(name="x").remote()
                del a, b, names
                outcomes = await asyncio.gather(
                    one.add.remote(), two.add.remote(), return_exceptions=True
                )
        assert [1 for each in outcomes if each == 1] == [1]
        assert len([each for each in outcomes if isinstance(each, ActorDiedError)]) == 1


async def test_an_error_in_the_constructor_is_told_by_the_first_call(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            broken = Broken.remote()
            with pytest.raises(ValueError, match="cannot be made") as caught:
                await broken.method.remote()
            assert isinstance(caught.value, TaskError)
            nowhere = Counter.options(resources={"tpu": 1}).remote()
            with pytest.raises(NoPlacementError, match=r"tpu: 1.*a offers CPU: 2"):
                await nowhere.add.remote()


async def test_a_crash_without_restarts_is_an_actor_died_error_that_tells(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", "b") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            counter = Counter.options(peer=mesh["b"].peer).remote()
            with pytest.raises(ActorDiedError) as caught:
                await counter.die.remote()
            assert caught.value.peer_name == "b"
            assert caught.value.may_have_run
            with pytest.raises(ActorDiedError) as caught:
                await counter.add.remote()
            assert not caught.value.may_have_run


async def test_a_crash_with_restarts_brings_it_back(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            counter = Counter.options(max_restarts=1).remote(10)
            assert await counter.add.remote() == 11
            with pytest.raises(ActorUnavailableError) as caught:
                await counter.die.remote()
            assert caught.value.may_have_run
            assert await counter.add.remote() == 11
            with pytest.raises(ActorDiedError):
                await counter.die.remote()


async def test_calls_are_tried_again_only_as_asked(tmp_path: Path) -> None:
    flag = tmp_path / "flag"

    @lattica.remote(max_restarts=-1, max_task_retries=1)
    class Flaky:
        def once(self) -> str:
            if not flag.exists():
                flag.touch()
                os._exit(1)
            return "second time"

    async with mesh_of(tmp_path, "a") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            assert await Flaky.remote().once.remote() == "second time"


async def test_a_lost_host_moves_the_actor_if_restarts_are_left(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", cpus=0.0) as mesh:
        await mesh.add("b")
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            stays = Counter.options(name="stays").remote()
            moves = Counter.options(max_restarts=1, max_task_retries=2).remote(7)
            assert (await stays.where.remote())[0] == "b"
            assert (await moves.where.remote())[0] == "b"
            in_flight = stays.sleep.remote(60)
            retried = moves.sleep.remote(0.5)
            assert await ready([in_flight, retried], 1, 0.2) == [False, False]
            await mesh.add("c")
            await mesh["b"].vanish()
            with pytest.raises(ActorDiedError, match=r"peer b is gone.*may have run") as caught:
                await in_flight
            assert caught.value.peer_name == "b"
            await retried
            assert (await moves.where.remote())[0] == "c"
            assert await moves.add.remote() == 8
            with pytest.raises(NoSuchActorError):
                await find("stays")


async def test_a_host_that_nothing_is_heard_of_loses_its_actors_before_its_link_is_lost(
    tmp_path: Path,
) -> None:
    config = ActorsConfig(suspect_patience=0.3)
    async with mesh_of(tmp_path, "a", cpus=0.0, config=config) as mesh:
        await mesh.add("b")
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            moves = Counter.options(max_restarts=1, max_task_retries=2).remote(7)
            assert (await moves.where.remote())[0] == "b"
            in_flight = moves.sleep.remote(1.5)
            assert await ready([in_flight], 1, 0.2) == [False]
            await mesh.add("c")
            mesh["a"].suspects(mesh["b"])
            await in_flight  # it is made again
            assert (await moves.where.remote())[0] == "c"
            assert mesh["a"].links.find(mesh["b"].peer) is not None


async def test_a_call_from_elsewhere_follows_an_actor_that_moved(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", cpus=0.0) as mesh:
        await mesh.add("b")
        driver = await mesh.add("d", cpus=0.0)
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            actor = Counter.options(name="mover", max_restarts=-1).remote(1)
            assert await actor.add.remote() == 2
        with driver.driver(), anyio.fail_after(LIMIT):
            found = await find("mover")
            assert await found.add.remote() == 3
            await mesh.add("c")
            await mesh["b"].vanish()
            assert await found.add.remote() == 2
            assert (await found.where.remote())[0] == "c"


async def test_an_owner_that_is_gone_takes_its_actors_with_it(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", "b", "c") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            actor = Counter.options(name="orphan", peer=mesh["b"].peer).remote(1)
            assert await actor.add.remote() == 2
        with mesh["c"].driver(), anyio.fail_after(LIMIT):
            found = await find("orphan")
            await mesh["a"].vanish()
            with pytest.raises(ActorDiedError, match="owner a is gone"):
                await found.add.remote()
            with pytest.raises(NoSuchActorError):
                await find("orphan")


async def test_kill_ends_the_process_and_says_so(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", "b") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            counter = Counter.options(peer=mesh["b"].peer, max_restarts=-1).remote()
            _, pid = await counter.where.remote()
            in_flight = counter.sleep.remote(60)
            assert await ready([in_flight], 1, 0.2) == [False]
            await asyncio.to_thread(lattica.kill, counter)
            with pytest.raises(ActorDiedError, match="killed"):
                await in_flight
            with pytest.raises(ActorDiedError, match="killed"):
                await counter.add.remote()
            await gone(pid)


async def test_kill_with_restarts_brings_it_back(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            counter = Counter.options(max_restarts=1).remote(3)
            _, pid = await counter.where.remote()
            await asyncio.to_thread(lattica.kill, counter, no_restart=False)
            await gone(pid)
            while True:
                try:
                    assert await counter.add.remote() == 4
                    break
                except ActorUnavailableError:
                    continue


async def test_an_unnamed_actor_ends_with_its_only_handle(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            counter = Counter.remote()
            _, pid = await counter.where.remote()
            ref = counter.sleep.remote(0.2)
            del counter
            await ref  # calls made before are carried out
            await gone(pid)


async def test_a_running_async_call_is_cancelled(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", "b") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            gate = Gate.options(peer=mesh["b"].peer).remote()
            waiting = gate.wait.remote()
            assert await ready([waiting], 1, 0.5) == [False]
            lattica.cancel(waiting)
            with pytest.raises(TaskCancelledError):
                await waiting
            assert await gate.ask.remote([lattica.put(1)]) == 1


async def test_a_generator_method_streams(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", "b") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            counter = Counter.options(peer=mesh["b"].peer).remote()
            assert [await ref async for ref in counter.up_to.remote(4)] == [0, 1, 2, 3]


async def test_nodes_lists_the_living(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", "b", "c") as mesh:
        with mesh["a"].driver(), anyio.fail_after(LIMIT):
            core = current().core
            assert (await core.nodes())[0].name == "a"  # this peer comes first
            assert {node.name for node in await core.nodes()} == {"a", "b", "c"}
            resources = await asyncio.to_thread(lattica.cluster_resources)
            assert resources["CPU"] == 6.0
            await mesh["b"].vanish()
            assert {node.name for node in await core.nodes()} == {"a", "c"}


async def test_two_halves_of_a_mesh_that_gave_one_name_twice_agree_when_they_meet_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with mesh_of(tmp_path, "a", "b") as mesh:
        a, b = mesh["a"], mesh["b"]
        mesh.network.partition(a.peer, b.peer)
        with a.driver(), anyio.fail_after(LIMIT):
            first = Counter.options(name="x", peer=a.peer).remote(10)
            assert await first.add.remote() == 11
        with b.driver(), anyio.fail_after(LIMIT):
            second = Counter.options(name="x", peer=b.peer).remote(20)
            assert await second.add.remote() == 21
            assert await (await find("x")).add.remote() == 22
            mesh.network.heal(a.peer, b.peer)
            for member, other in ((a, b), (b, a)):
                await member.dht.bootstrap([Contact(other.peer, ("there:1",))])
            while "has lost its name" not in caplog.text:
                await anyio.sleep(0.05)
            owner = (await find("x"))._info.owner
            assert await second.add.remote() == 23  # by its handle, whether it has its name or not
        with a.driver(), anyio.fail_after(LIMIT):
            assert (await find("x"))._info.owner == owner
