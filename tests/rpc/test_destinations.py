"""Results that go straight into what the caller has: on a link, over QUIC, and to oneself."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
import pytest

from lattica.config import KIB, MIB
from lattica.errors import BadArgumentsError, BadResultError, DeadlineError
from lattica.rpc import Buffer, Rpc, into, method
from tests.rpc import quic
from tests.rpc.mesh import Mesh

pytestmark = pytest.mark.anyio


class Parts(msgspec.Struct):
    """Two buffers and something small."""

    name: str
    first: Buffer
    second: Buffer


class Source:
    """Gives what it is asked for."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    @method(scope=None)
    async def blob(self, size: int) -> Buffer:
        self.begun.set()
        return Buffer(_data(size))

    @method(scope=None)
    async def parts(self, first: int, second: int) -> Parts:
        return Parts("both", Buffer(_data(first)), Buffer(_data(second)))

    @method(scope=None)
    async def many(self, sizes: list[int], text: int = 0) -> tuple[str, list[Buffer]]:
        return "x" * text, [Buffer(_data(size)) for size in sizes]

    @method(scope=None)
    async def fail(self) -> Buffer:
        raise ValueError("no data today")


def _data(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.fixture(params=["link", "local"])
async def stub(request: pytest.FixtureRequest) -> AsyncIterator[Source]:
    async with Mesh() as mesh, asyncio.timeout(20):
        mesh.b.register("source", Source())
        caller = mesh.a if request.param == "link" else mesh.b
        yield caller.client(mesh.b.local, Source, "source")


@pytest.mark.parametrize("size", [0, 10, 20 * KIB, 3 * MIB])
async def test_a_result_fills_an_array(stub: Source, size: int) -> None:
    array = np.zeros(max(size, 1), np.uint8)
    got = await into(stub.blob, array)(size)
    assert array[:size].tobytes() == _data(size)
    assert np.shares_memory(np.frombuffer(got.data, np.uint8), array) or not size
    assert len(got) == size


async def test_a_shorter_result_leaves_the_rest_alone(stub: Source) -> None:
    target = bytearray(b"z" * 100_000)
    got = await into(stub.blob, target)(60_000)
    assert len(got) == 60_000
    assert target == _data(60_000) + b"z" * 40_000


@pytest.mark.parametrize(
    ("first", "second"), [(50_000, 900_000), (10, 20), (10, 50_000), (50_000, 10), (0, 50_000)]
)
async def test_each_buffer_has_its_own(stub: Source, first: int, second: int) -> None:
    one, two = np.zeros(first, np.uint8), bytearray(second)
    got = await into(stub.parts, one, two)(first, second)
    assert got.name == "both"
    assert one.tobytes() == bytes(got.first) == _data(first)
    assert bytes(two) == bytes(got.second) == _data(second)


async def test_a_message_that_did_not_fit_a_frame(stub: Source) -> None:
    targets = [bytearray(30_000) for _ in range(3)]
    text, buffers = await into(stub.many, *targets)([30_000, 20, 30_000], text=400_000)
    assert len(text) == 400_000
    assert [bytes(each) for each in buffers] == [_data(30_000), _data(20), _data(30_000)]
    assert targets[1][:20] == _data(20)


@pytest.mark.parametrize("size", [100, 200_000])
async def test_what_does_not_fit_is_told_and_the_link_goes_on(stub: Source, size: int) -> None:
    with pytest.raises(BadResultError, match=f"{size} bytes does not fit destination 0 of 50"):
        await into(stub.blob, bytearray(50))(size)
    with pytest.raises(BadResultError, match="1 buffers came for 2 destinations"):
        await into(stub.blob, bytearray(size), bytearray(size))(size)
    with pytest.raises(BadResultError, match="more buffers came than the 1 destinations"):
        await into(stub.parts, bytearray(size))(size, size)
    with pytest.raises(Exception, match="no data today"):
        await into(stub.fail, bytearray(size))()
    assert len(await stub.blob(size)) == size


@pytest.mark.parametrize(
    ("destination", "says"),
    [
        (b"fixed", "read-only"),
        (np.zeros((4, 4))[:, 1], "do not lie in one piece"),
        ("text", "cannot be used"),
    ],
)
async def test_a_wrong_destination_is_told_at_once(
    stub: Source, destination: Any, says: str
) -> None:
    with pytest.raises(BadArgumentsError, match=says):
        into(stub.blob, destination)


async def test_only_methods_that_return_one_value(stub: Source) -> None:
    with pytest.raises(TypeError, match="method of a stub"):
        into(len, bytearray(1))
    with pytest.raises(TypeError, match="destination for each buffer"):
        into(stub.blob)


async def test_after_a_deadline_nothing_more_is_written() -> None:
    async with Mesh(latency=0.02) as mesh, asyncio.timeout(20):
        mesh.b.register("source", Source())
        size, target = 8 * MIB, bytearray(8 * MIB)
        stub = mesh.a.client(mesh.b.local, Source, "source", timeout=0.15)
        with pytest.raises(DeadlineError):
            await into(stub.blob, target)(size)
        before = bytes(target)
        await asyncio.sleep(0.3)
        assert target == before
        assert 0 < before.count(0) > size // 251, "it had not come whole"
        assert len(await stub.blob(1000)) == 1000


async def test_after_a_cancellation_nothing_more_is_written() -> None:
    async with Mesh(latency=0.02) as mesh, asyncio.timeout(20):
        mesh.b.register("source", Source())
        target = bytearray(8 * MIB)
        stub = mesh.a.client(mesh.b.local, Source, "source")
        task = asyncio.create_task(into(stub.blob, target)(len(target)))
        while not any(target[1:100]):
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        before = bytes(target)
        await asyncio.sleep(0.2)
        assert target == before


async def test_a_large_download_needs_hardly_more_than_its_destination(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 64 * MIB
    array, data = np.empty(size, np.uint8), _data(size)
    monkeypatch.setattr("tests.rpc.test_destinations._data", lambda _: data)
    async with Mesh() as mesh, asyncio.timeout(30):
        mesh.b.register("source", Source())
        stub = mesh.a.client(mesh.b.local, Source, "source")
        tracemalloc.start()
        try:
            await into(stub.blob, array)(size)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 0.2 * size
    assert array.tobytes() == data


async def test_over_quic() -> None:
    async with quic.peer(quic.SERVER, "server") as server, quic.peer(quic.CLIENT, "client") as rpc:
        server.register("source", Source())
        rpc.links.learn(server.local, quic.address(server))
        await _fill(rpc, server)


async def _fill(rpc: Rpc, server: Rpc) -> None:
    stub = rpc.client(server.local, Source, "source")
    arrays = [np.zeros(2_000_000, np.uint8) for _ in range(4)]
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        for array in arrays:
            tasks.create_task(into(stub.blob, array)(len(array)))
    assert all(array.tobytes() == _data(2_000_000) for array in arrays)
