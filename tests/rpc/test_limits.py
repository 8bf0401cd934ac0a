"""Limits of methods and peers over links: who waits, who is refused, whose turn it is."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from lattica.config import RpcConfig
from lattica.errors import BusyError, CallLostError, DeadlineError
from lattica.rpc import Buffer, Rpc, caller, method
from lattica.virtual_loop import VirtualLoop
from tests.rpc.mesh import Mesh, until

pytestmark = pytest.mark.anyio
SERVICE_TIME = 0.1  # seconds


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Slow:
    """Handlers that take their time, few at a time."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.order: list[str] = []
        self.release = asyncio.Event()

    async def _work(self, seconds: float) -> None:
        self.order.append(caller().name)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.running -= 1

    @method(max_concurrency=2, max_queue=100)
    async def two(self, seconds: float = SERVICE_TIME, data: Buffer | None = None) -> str:
        await self._work(seconds)
        return "done"

    @method(scope=None, max_concurrency=3, max_queue=30)
    async def open(self, seconds: float) -> str:
        await self._work(seconds)
        return "done"

    @method(max_concurrency=1, max_queue=0)
    async def alone(self) -> None:
        await self.release.wait()

    @method(max_concurrency=1, max_queue=1)
    async def items(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            await self._work(SERVICE_TIME)
            yield i

    @method()
    async def free(self, seconds: float = SERVICE_TIME) -> str:
        await self._work(seconds)
        return "done"


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with Mesh() as mesh:
        yield mesh


@pytest.fixture
def slow(mesh: Mesh) -> Slow:
    slow = Slow()
    mesh.b.register("slow", slow)
    return slow


def stub_of(rpc: Rpc, mesh: Mesh, timeout: float = 60.0) -> Slow:
    return rpc.client(mesh.b.local, Slow, "slow", timeout=timeout)


def idle(mesh: Mesh) -> bool:
    """Nothing runs and nothing waits at `b`."""
    registry = mesh.b._registry
    gates = [each.gate for each in registry.services["slow"].values()]
    assert registry.admission.running == sum(gate.running for gate in gates)
    return not registry.admission.running and not registry.admission.queued


@pytest.mark.parametrize("where", ["link", "local"])
async def test_no_more_run_than_may_and_the_rest_waits(mesh: Mesh, slow: Slow, where: str) -> None:
    stub = stub_of(mesh.a if where == "link" else mesh.b, mesh)
    start = now()
    assert await asyncio.gather(*(stub.two() for _ in range(20))) == ["done"] * 20
    assert slow.most == 2
    assert now() - start == pytest.approx(10 * SERVICE_TIME, abs=0.01)
    assert idle(mesh)


@pytest.mark.parametrize("where", ["link", "local"])
async def test_a_method_without_a_queue_refuses_at_once(mesh: Mesh, slow: Slow, where: str) -> None:
    stub = stub_of(mesh.a if where == "link" else mesh.b, mesh)
    first = asyncio.create_task(stub.alone())
    await until(lambda: not idle(mesh))
    with pytest.raises(BusyError, match=r"1 calls of slow\.alone are running and 0 waiting"):
        await stub.alone()
    slow.release.set()
    await first
    await stub.alone()
    assert mesh.b.counters["refused:busy"] == 1
    assert mesh.b._registry.services["slow"]["alone"].meter.errors == {"BusyError": 1}


async def test_retry_after_is_when_there_is_room_again(mesh: Mesh, slow: Slow) -> None:
    stub = stub_of(mesh.a, mesh)
    await asyncio.gather(*(stub.two() for _ in range(20)))  # it has learnt what a call takes
    tasks = [asyncio.create_task(stub.two()) for _ in range(102)]
    await until(lambda: mesh.b._registry.admission.queued == 100)
    with pytest.raises(BusyError) as refused:
        await stub.two()
    # 100 calls wait, two run at a time.
    assert refused.value.retry_after == pytest.approx(50 * SERVICE_TIME, rel=0.05)
    await asyncio.sleep(refused.value.retry_after)
    assert await stub.two() == "done"
    await asyncio.gather(*tasks)
    assert idle(mesh)


async def test_a_flood_from_one_peer_delays_another_by_one_service_time(
    mesh: Mesh, slow: Slow
) -> None:
    flood = [asyncio.create_task(stub_of(mesh.a, mesh).two()) for _ in range(300)]
    await until(lambda: mesh.b._registry.admission.queued == 100)
    for rpc in (mesh.b, mesh.b, mesh.b):  # the peer's own calls take their turn as well
        start = now()
        assert await stub_of(rpc, mesh).two() == "done"
        assert now() - start <= 2 * SERVICE_TIME + 0.01
        await asyncio.sleep(0.33 * SERVICE_TIME)
    outcomes = Counter(
        type(one).__name__ for one in await asyncio.gather(*flood, return_exceptions=True)
    )
    # One of the flood lost its place to the call of `b`, whose queue was full.
    assert outcomes == {"str": 101, "BusyError": 199}
    assert idle(mesh)


async def test_a_flood_of_two_peers_leaves_the_third_its_part(mesh: Mesh, slow: Slow) -> None:
    stop = asyncio.Event()

    async def flood(rpc: Rpc) -> None:
        while not stop.is_set():
            try:
                await stub_of(rpc, mesh).open(SERVICE_TIME)
            except BusyError:
                await asyncio.sleep(0.05)

    floods = [asyncio.create_task(flood(rpc)) for rpc in [mesh.stranger, mesh.a] * 40]
    await asyncio.sleep(1.0)
    waits = []
    for _ in range(20):
        start = now()
        assert await stub_of(mesh.b, mesh).open(0.0) == "done", "never refused"
        waits.append(now() - start)
    assert max(waits) <= SERVICE_TIME + 0.01
    stop.set()
    await asyncio.gather(*floods)
    served = Counter(slow.order)
    assert 0.8 < served["stranger"] / served["a"] < 1.25
    assert idle(mesh)


async def test_a_flood_does_not_hold_back_other_methods(mesh: Mesh, slow: Slow) -> None:
    stub = stub_of(mesh.a, mesh)
    flood = [asyncio.create_task(stub.two(5.0)) for _ in range(100)]
    await until(lambda: mesh.b._registry.admission.queued == 98)
    start = now()
    assert await stub.free() == "done"
    assert now() - start == pytest.approx(SERVICE_TIME, abs=0.01)
    for task in flood:
        task.cancel()
    await until(lambda: idle(mesh))


async def test_one_total_for_all_methods_and_peers() -> None:
    async with Mesh(RpcConfig(max_running=3, max_running_per_peer=2)) as mesh:
        slow = Slow()
        mesh.b.register("slow", slow)
        mine, own = stub_of(mesh.a, mesh), stub_of(mesh.b, mesh)
        tasks = [asyncio.create_task(mine.free()) for _ in range(50)]
        await until(lambda: slow.running == 2)
        start = now()
        await own.free()
        assert now() - start == pytest.approx(SERVICE_TIME, abs=0.01), "one peer takes not all"
        tasks += [asyncio.create_task(own.free()) for _ in range(50)]
        await asyncio.gather(*tasks)
        assert slow.most == 3
        both = slow.order[10:60]
        assert abs(both.count("a") - both.count("b")) <= 18, "2 of 3 places at most"
        assert idle(mesh)


async def test_a_call_waits_no_longer_than_its_deadline(mesh: Mesh, slow: Slow) -> None:
    keep = [asyncio.create_task(stub_of(mesh.a, mesh).two(10.0)) for _ in range(2)]
    await until(lambda: slow.running == 2)
    for rpc in (mesh.a, mesh.b):
        start = now()
        with pytest.raises(DeadlineError):
            await stub_of(rpc, mesh, timeout=1.0).two()
        assert now() - start == pytest.approx(1.0, abs=0.02)
        await asyncio.sleep(0.02)
        assert not mesh.b._registry.admission.queued
    await asyncio.gather(*keep)
    assert len(slow.order) == 2, "what was late never ran"
    assert idle(mesh)


async def test_streams_wait_for_their_turn_too(mesh: Mesh, slow: Slow) -> None:
    stub = stub_of(mesh.a, mesh)

    async def read() -> list[int]:
        return [i async for i in stub.items(3)]

    outcomes = await asyncio.gather(*(read() for _ in range(3)), return_exceptions=True)
    assert outcomes[:2] == [[0, 1, 2]] * 2
    assert isinstance(outcomes[2], BusyError)
    assert slow.most == 1
    assert idle(mesh)


async def test_a_body_that_would_be_refused_is_not_taken_in(mesh: Mesh, slow: Slow) -> None:
    stub = stub_of(mesh.a, mesh)
    tasks = [asyncio.create_task(stub.two(1.0)) for _ in range(102)]
    await until(lambda: mesh.b._registry.admission.queued == 100)
    with pytest.raises(BusyError):
        await stub.two(0.1, Buffer(bytes(30_000_000)))
    serving = next(iter(mesh.b._sessions.values())).serving
    assert serving.held < 100_000
    await asyncio.gather(*tasks)


async def test_waiting_bytes_are_bounded(mesh: Mesh) -> None:
    async with Mesh(RpcConfig(max_queue_bytes=100_000)) as mesh:
        slow = Slow()
        mesh.b.register("slow", slow)
        stub = stub_of(mesh.a, mesh)
        calls = [stub.two(0.1, Buffer(bytes(30_000))) for _ in range(8)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        kinds = Counter(type(outcome).__name__ for outcome in outcomes)
        assert kinds == {"str": 5, "BusyError": 3}
        assert idle(mesh)


async def test_a_lost_link_takes_its_waiting_calls_along(mesh: Mesh, slow: Slow) -> None:
    stub = stub_of(mesh.a, mesh)
    tasks = [asyncio.create_task(stub.two(1.0)) for _ in range(50)]
    await until(lambda: mesh.b._registry.admission.queued == 48)
    mine = asyncio.create_task(stub_of(mesh.b, mesh).two())
    mesh.network.partition(mesh.a.local, mesh.b.local)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, CallLostError) for outcome in outcomes)
    assert await mine == "done"
    assert slow.order.count("a") <= 4
    assert idle(mesh)
    mesh.network.heal(mesh.a.local, mesh.b.local)
    assert await stub.two() == "done"


@pytest.mark.parametrize("seed", range(5))
async def test_storms_of_deadlines_and_cancellations_while_calls_wait(
    mesh: Mesh, slow: Slow, seed: int
) -> None:
    chance = random.Random(seed)
    outcomes: Counter[str] = Counter()

    async def one() -> None:
        await asyncio.sleep(chance.random())
        rpc = chance.choice((mesh.a, mesh.b))
        stub = stub_of(rpc, mesh, timeout=chance.choice((0.05, 0.2, 60.0)))
        run = chance.choice((stub.two, stub.two, stub.free))
        task = asyncio.create_task(run(chance.random() * SERVICE_TIME))
        if chance.random() < 0.3:
            await asyncio.sleep(chance.random() * 0.3)
            task.cancel()
        try:
            await task
            outcomes["value"] += 1
        except (BusyError, DeadlineError) as error:
            outcomes[type(error).__name__] += 1
        except asyncio.CancelledError:
            outcomes["cancelled"] += 1

    await asyncio.gather(*(one() for _ in range(1000)))
    assert outcomes.total() == 1000
    assert all(outcomes[kind] for kind in ("value", "BusyError", "DeadlineError", "cancelled"))
    await until(lambda: idle(mesh))
    assert slow.running == 0
    assert await stub_of(mesh.a, mesh).two() == "done"
