"""What an Rpc tells of its methods and links adds up."""

from __future__ import annotations

import asyncio
import bisect
import math
from collections.abc import AsyncIterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import (
    BadArgumentsError,
    BusyError,
    CallLostError,
    DeadlineError,
    RemoteError,
    UnreachableError,
)
from lattica.rpc import Buffer, Rpc, RpcStats, method
from lattica.rpc.meter import BUCKETS, MAX_KINDS, OTHER, Meter, bounds
from lattica.rpc.statistics import called_stats
from lattica.virtual_loop import VirtualLoop
from tests.rpc.mesh import Mesh

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def test_the_bounds_go_from_tenths_of_milliseconds_to_minutes() -> None:
    assert len(bounds()) == BUCKETS - 1
    assert bounds()[0] == 1e-4
    assert 100 < bounds()[-1] < 120
    assert all(after == 2 * before for before, after in zip(bounds(), bounds()[1:], strict=False))


@given(st.floats(0, 1e6))
def test_a_time_is_counted_between_its_bounds(seconds: float) -> None:
    meter = Meter()
    meter.took(seconds)
    index = meter.buckets.index(1)
    assert sum(meter.buckets) == 1
    expected = bisect.bisect_right(bounds(), seconds)
    near = min(abs(seconds - bound) for bound in bounds()) < 1e-9 * max(seconds, 1e-4)
    assert index == expected or near


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_quantile_is_a_bound_above_so_many(times: list[float], share: float) -> None:
    meter = Meter()
    for seconds in times:
        meter.calls += 1
        meter.took(seconds)
    stats = called_stats(meter)
    bound = stats.quantile(share)
    assert sum(seconds <= bound * (1 + 1e-9) for seconds in times) >= share * len(times) - 1e-6
    assert stats.in_flight == 0
    assert stats.seconds == pytest.approx(sum(times))


def test_nothing_has_no_quantile() -> None:
    assert called_stats(Meter()).quantile(0.5) == 0.0
    slow = Meter()
    slow.took(1000.0)
    assert called_stats(slow).quantile(0.5) == math.inf


def test_kinds_of_errors_are_bounded() -> None:
    meter = Meter()
    for i in range(10 * MAX_KINDS):
        meter.failed(f"Error{i}")
    meter.failed("Error0")
    assert len(meter.errors) == MAX_KINDS + 1
    assert meter.errors.total() == 10 * MAX_KINDS + 1
    assert meter.errors["Error0"] == 2
    assert meter.errors[OTHER] == 9 * MAX_KINDS


class Service:
    def __init__(self) -> None:
        self.release = asyncio.Event()

    @method()
    async def nap(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @method()
    async def echo(self, data: Buffer) -> Buffer:
        return data

    @method(max_concurrency=1, max_queue=1)
    async def single(self) -> None:
        await self.release.wait()

    @method()
    async def fail(self) -> None:
        raise ValueError

    @method()
    async def items(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i


class Wrong:
    @method()
    async def nap(self, seconds: str) -> None: ...


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with Mesh(latency=0.01) as mesh:
        yield mesh


@pytest.fixture
def service(mesh: Mesh) -> Service:
    service = Service()
    mesh.b.register("service", service)
    return service


def stub_of(rpc: Rpc, mesh: Mesh, timeout: float = 10.0) -> Service:
    return rpc.client(mesh.b.local, Service, "service", timeout=timeout)


async def test_times_of_both_ends(mesh: Mesh, service: Service) -> None:
    stub = stub_of(mesh.a, mesh)
    await asyncio.gather(*(stub.nap(0.5) for _ in range(10)), stub.nap(5.0))
    served = mesh.b.stats().served["service.nap"]
    called = mesh.a.stats().called["service.nap"]
    assert served.seconds == pytest.approx(10.0)
    # The way there and back, and for those that waited for the link a round trip more.
    assert 10.0 + 11 * 0.02 <= called.seconds <= 10.0 + 11 * 0.05
    for stats in (served, called):
        assert (stats.calls, stats.in_flight, sum(stats.buckets)) == (11, 0, 11)
        assert 0.5 < stats.quantile(0.5) <= 1.0
        assert 5.0 < stats.quantile(0.99) <= 10.0


async def test_time_in_the_queue_counts(mesh: Mesh, service: Service) -> None:
    tasks = [asyncio.create_task(stub_of(mesh.a, mesh).single()) for _ in range(2)]
    await asyncio.sleep(0.1)
    served = mesh.b.stats().served["service.single"]
    assert (served.calls, served.in_flight, served.queued) == (2, 2, 1)
    assert mesh.a.stats().called["service.single"].in_flight == 2
    assert mesh.b.stats().running == 1
    await asyncio.sleep(1.0)
    service.release.set()
    await asyncio.gather(*tasks)
    assert mesh.b.stats().served["service.single"].seconds == pytest.approx(2.2, abs=0.2)


async def test_bytes_are_those_of_arguments_and_results(mesh: Mesh, service: Service) -> None:
    for size in (100, 1_000_000):
        await stub_of(mesh.a, mesh).echo(Buffer(bytes(size)))
    served = mesh.b.stats().served["service.echo"]
    assert 1_000_100 <= served.bytes_in < 1_000_200
    assert 1_000_100 <= served.bytes_out < 1_000_300


async def test_errors_by_kind(mesh: Mesh, service: Service) -> None:
    stub = stub_of(mesh.a, mesh)
    with pytest.raises(RemoteError):
        await stub.fail()
    with pytest.raises(BadArgumentsError):
        await mesh.a.client(mesh.b.local, Wrong, "service").nap("x")
    with pytest.raises(DeadlineError):
        await stub_of(mesh.a, mesh, timeout=0.1).nap(1.0)
    tasks = [asyncio.create_task(stub.single()) for _ in range(3)]
    with pytest.raises(BusyError):
        await tasks[2]
    tasks[1].cancel()
    await asyncio.sleep(0.1)
    mesh.network.partition(mesh.a.local, mesh.b.local)
    with pytest.raises(CallLostError):
        await tasks[0]
    await asyncio.sleep(0.1)
    with pytest.raises(UnreachableError):
        await stub.nap(1.0)
    stats = mesh.b.stats()
    served = {name: each.errors for name, each in stats.served.items() if each.errors}
    assert served == {
        "service.fail": {"ValueError": 1},
        "service.nap": {"BadArgumentsError": 1, "DeadlineError": 1},
        "service.single": {"BusyError": 1, "CallCancelledError": 1, "LinkLostError": 1},
    }
    called = {name: each.errors for name, each in mesh.a.stats().called.items()}
    assert called == {
        "service.fail": {"RemoteError": 1},
        "service.nap": {"BadArgumentsError": 1, "DeadlineError": 1, "UnreachableError": 1},
        "service.single": {"BusyError": 1, "CancelledError": 1, "CallLostError": 1},
    }
    assert stats.counters["refused:busy"] == stats.counters["refused:bad_arguments"] == 1
    assert all(each.in_flight == 0 for each in stats.served.values())


async def test_local_calls_are_counted_on_both_sides(mesh: Mesh, service: Service) -> None:
    await stub_of(mesh.b, mesh).nap(0.5)
    stats = mesh.b.stats()
    assert stats.served["service.nap"].seconds == pytest.approx(0.5)
    assert stats.called["service.nap"].seconds == pytest.approx(0.5)


async def test_links_and_the_calls_on_them(mesh: Mesh, service: Service) -> None:
    assert mesh.a.stats().links == ()
    task = asyncio.create_task(stub_of(mesh.a, mesh).single())
    await asyncio.sleep(0.1)
    (out,) = mesh.a.stats().links
    (back,) = mesh.b.stats().links
    assert (out.peer, out.name, out.calls_out, out.calls_in) == (mesh.b.local, "b", 1, 0)
    assert (back.peer, back.name, back.calls_out, back.calls_in) == (mesh.a.local, "a", 0, 1)
    assert out.link.engine == "memory"
    assert out.link.bytes_out > 0
    service.release.set()
    await task
    assert mesh.a.stats().links[0].calls_out == 0


async def test_statistics_can_be_sent(mesh: Mesh, service: Service) -> None:
    await stub_of(mesh.a, mesh).nap(0.0)
    stats = msgspec.json.decode(msgspec.json.encode(mesh.a.stats(), enc_hook=str))
    assert stats["called"]["service.nap"]["calls"] == 1
    assert stats["bounds"] == list(bounds())
    assert isinstance(mesh.a.stats(), RpcStats)
