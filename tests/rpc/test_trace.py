"""A trace id goes wherever the work goes, and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from lattica.rpc import Rpc, caller, method, trace_id
from tests.rpc.mesh import Mesh

pytestmark = pytest.mark.anyio


class Traced:
    """Tells the trace of each step, at the end of a chain of calls or of its own."""

    def __init__(self, rpc: Rpc) -> None:
        self.rpc = rpc
        self.next: Rpc | None = None

    def _following(self) -> Traced:
        assert self.next is not None
        return self.rpc.client(self.next.local, Traced, "traced", timeout=20)

    @method()
    async def chain(self, hops: int) -> list[bytes]:
        await asyncio.sleep(0)
        rest = await self._following().chain(hops - 1) if hops else []
        return [trace_id.get(), *rest]

    @method()
    async def at_once(self) -> bytes:
        return trace_id.get()

    @method(max_concurrency=1)
    async def queued(self) -> bytes:
        await asyncio.sleep(0.001)
        return trace_id.get()

    @method(run_in="thread")
    def in_thread(self) -> bytes:
        assert caller().trace == trace_id.get()
        return trace_id.get()

    @method(run_in="thread")
    def thread_items(self, n: int) -> Iterator[bytes]:
        for _ in range(n):
            yield trace_id.get()

    @method()
    async def items(self, n: int) -> AsyncIterator[bytes]:
        for _ in range(n):
            yield trace_id.get()
            yield await self._following().at_once()
            async for item in self._following().thread_items(1):
                yield item


@pytest.fixture
async def stubs() -> AsyncIterator[list[Traced]]:
    """Of `b` as others and as itself see it."""
    async with Mesh() as mesh:
        peers = (mesh.a, mesh.b)
        services = [Traced(rpc) for rpc in peers]
        for rpc, service, following in zip(peers, services, reversed(peers), strict=True):
            service.next = following
            rpc.register("traced", service)
        yield [rpc.client(mesh.b.local, Traced, "traced", timeout=20) for rpc in peers]


async def everywhere(stub: Traced) -> set[bytes]:
    """The traces that all kinds of handlers saw of one piece of work."""
    seen = set(await stub.chain(5))
    seen |= {await stub.at_once(), await stub.in_thread(), await stub.queued()}
    seen |= {item async for item in stub.items(3)}
    return seen


async def test_without_a_trace_there_is_none(stubs: list[Traced]) -> None:
    for stub in stubs:
        assert await everywhere(stub) == {b""}


async def test_one_trace_goes_through_nested_calls_threads_and_streams(
    stubs: list[Traced],
) -> None:
    trace_id.set(b"0123456789abcdef")
    for stub in stubs:
        assert await everywhere(stub) == {b"0123456789abcdef"}


async def test_traces_of_work_side_by_side_do_not_mix(stubs: list[Traced]) -> None:
    async def work(i: int) -> None:
        trace = b"%016d" % i
        trace_id.set(trace)
        assert await everywhere(stubs[i % 2]) == {trace}
        assert trace_id.get() == trace

    async with asyncio.timeout(60):
        await asyncio.gather(*(work(i) for i in range(40)))
