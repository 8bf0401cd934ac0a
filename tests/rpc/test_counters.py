"""Both ends of a link count the same: each call once, however it ends, and every byte."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.config import RpcConfig
from lattica.errors import (
    BadArgumentsError,
    BusyError,
    CallLostError,
    DeadlineError,
    RemoteError,
    StreamTruncatedError,
)
from lattica.rpc import Buffer, MethodStats, Rpc, method, trace_id
from lattica.rpc import messages as m
from lattica.virtual_loop import VirtualLoop
from tests.rpc.mesh import Mesh, collect

pytestmark = pytest.mark.anyio
SERVICE = "a service with a name that takes a header of two bytes"
INLINE = 1000  # bytes, of buffers and about half of it of messages


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Service:
    """Every shape of a call; `hold` keeps a handler until it is told."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    @method()
    async def echo(self, data: Buffer, text: str) -> tuple[Buffer, str]:
        return data, text

    @method()
    async def fail(self) -> None:
        raise ValueError

    @method()
    async def hold(self, data: Buffer) -> None:
        await self.release.wait()

    @method(max_concurrency=1, max_queue=1)
    async def single(self) -> None:
        await self.release.wait()

    @method()
    async def same(self, data: bytes) -> bytes:
        return data

    @method()
    async def total(self, items: AsyncIterator[Buffer], hold: bool = False) -> int:
        total = sum([len(item) async for item in items])
        if hold:
            await self.release.wait()
        return total

    @method()
    async def items(self, n: int, size: int, then: str = "") -> AsyncIterator[Buffer]:
        for _ in range(n):
            yield Buffer(bytes(size))
        if then == "hold":
            await self.release.wait()
        if then == "fail":
            raise ValueError

    @method()
    async def mirror(self, items: AsyncIterator[int]) -> AsyncIterator[int]:
        async for item in items:
            yield item


class Wrong:
    """The same as others would call it."""

    @method()
    async def echo(self, data: int) -> None: ...

    @method()
    async def hold(self, data: tuple[Buffer, int]) -> None: ...

    @method()
    async def items(self, n: str) -> AsyncIterator[int]:
        yield 0


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with Mesh(RpcConfig(inline_limit=INLINE, max_frame=4096), latency=0.01) as mesh:
        yield mesh


@pytest.fixture
def service(mesh: Mesh) -> Service:
    service = Service()
    mesh.b.register(SERVICE, service)
    return service


def stub_of(rpc: Rpc, mesh: Mesh, timeout: float = 10.0) -> Service:
    return rpc.client(mesh.b.local, Service, SERVICE, timeout=timeout, stream_timeout=timeout)


@pytest.fixture
def stub(mesh: Mesh, service: Service) -> Service:
    return stub_of(mesh.a, mesh)


@pytest.fixture(params=["link", "local"])
def local(request: pytest.FixtureRequest) -> bool:
    """Whether a peer calls itself."""
    return bool(request.param == "local")


@pytest.fixture
def any_stub(mesh: Mesh, service: Service, local: bool) -> Service:
    return stub_of(mesh.b if local else mesh.a, mesh)


def both(mesh: Mesh, name: str, caller: Rpc | None = None) -> tuple[MethodStats, MethodStats]:
    called = (caller or mesh.a).stats().called[f"{SERVICE}.{name}"]
    return called, mesh.b.stats().served[f"{SERVICE}.{name}"]


def check_bytes(mesh: Mesh, name: str) -> tuple[int, int]:
    """That both ends have counted the same; how much went there and came back."""
    called, served = both(mesh, name)
    assert (called.bytes_out, called.bytes_in) == (served.bytes_in, served.bytes_out)
    return called.bytes_out, called.bytes_in


def check_outcome(
    mesh: Mesh, name: str, called_error: str = "", served_error: str = "", *, local: bool = False
) -> None:
    """That one call is counted at both ends, and is over."""
    errors = called_error, served_error
    for stats, error in zip(both(mesh, name, mesh.b if local else None), errors, strict=True):
        assert (stats.calls, stats.in_flight, stats.queued, sum(stats.buckets)) == (1, 0, 0, 1)
        assert stats.errors == ({error: 1} if error else {})


# ------------------------------------------------------------------------ bytes


@given(st.integers(0, 2**62 - 1), st.text(max_size=128), st.text(max_size=128))
def test_what_surrounds_arguments_and_results(call: int, service: str, name: str) -> None:
    for trace in (b"", bytes(m.TRACE_BYTES)):
        message = m.Call(call, service, name, math.inf, msgspec.Raw(b"\x90"), (), False, trace)
        around = m.around_call(service, name) + m.size_of_id(call) + len(trace)
        assert len(msgspec.msgpack.encode(message)) == around + 1
    result = m.Result(call, msgspec.Raw(b"\x90"))
    assert len(msgspec.msgpack.encode(result)) == m.AROUND_RESULT + m.size_of_id(call) + 1


@pytest.mark.parametrize("data", [0, 100, INLINE + 1, 3_000_000])
@pytest.mark.parametrize("text", [0, 100, 1500, 100_000])
async def test_a_call(mesh: Mesh, stub: Service, data: int, text: int) -> None:
    await stub.echo(Buffer(bytes(data)), "x" * text)
    for nbytes in check_bytes(mesh, "echo"):
        assert data + text <= nbytes <= data + text + 15
    check_outcome(mesh, "echo")


async def test_many_calls_with_a_trace(mesh: Mesh, stub: Service) -> None:
    token = trace_id.set(bytes(m.TRACE_BYTES))
    for size in range(300):  # ids of one, two and three bytes
        await stub.same(bytes(size))
    trace_id.reset(token)
    # Arguments: an array, and in it bytes with a header of two or three bytes.
    expected = sum(range(300)) + 300 * 2 + (300 - 256)
    assert check_bytes(mesh, "same") == (expected + 300, expected)


async def test_an_integer_for_a_timeout(mesh: Mesh, service: Service) -> None:
    await stub_of(mesh.a, mesh, timeout=5).same(b"")
    assert check_bytes(mesh, "same") == (3, 2)


@pytest.mark.parametrize("size", [0, 100, 40_000, 3_000_000])
async def test_an_upload(mesh: Mesh, stub: Service, size: int) -> None:
    assert await stub.total([Buffer(bytes(size))] * 3) == 3 * size  # type: ignore[arg-type]
    out, _ = check_bytes(mesh, "total")
    assert 3 * size <= out < 3 * size + 100
    check_outcome(mesh, "total")


@pytest.mark.parametrize("size", [0, 100, 40_000, 3_000_000])
async def test_a_stream(mesh: Mesh, stub: Service, size: int) -> None:
    assert len([item async for item in stub.items(3, size)]) == 3
    _, back = check_bytes(mesh, "items")
    assert 3 * size <= back < 3 * size + 100
    check_outcome(mesh, "items")


async def test_items_both_ways(mesh: Mesh, stub: Service) -> None:
    items: Any = range(10_000)
    assert [item async for item in stub.mirror(items)] == list(items)
    out, back = check_bytes(mesh, "mirror")
    assert 10_000 < back < out < 40_000
    check_outcome(mesh, "mirror")


async def test_bytes_of_a_stream_count_as_they_come(mesh: Mesh, stub: Service) -> None:
    items = stub.items(3, 1000, "hold")
    for _ in range(3):
        await anext(items)
    _, back = check_bytes(mesh, "items")
    assert 3000 <= back < 3100
    called, served = both(mesh, "items")
    assert called.in_flight == served.in_flight == 1
    assert sum(called.buckets) == sum(served.buckets) == 0


async def test_a_body_counts_as_far_as_it_went(mesh: Mesh, stub: Service) -> None:
    size = 50_000_000
    # Granted what a stream may hold, the rest never leaves.
    task = asyncio.create_task(stub.hold(Buffer(bytes(size))))
    await asyncio.sleep(0.035)  # the way to the link, and the call's one way
    mesh.network.partition(mesh.a.local, mesh.b.local)
    with pytest.raises(CallLostError):
        await task
    called, served = both(mesh, "hold")
    assert 0 < served.bytes_in <= called.bytes_out < size


async def test_calls_of_a_peer_to_itself_move_nothing(mesh: Mesh, service: Service) -> None:
    stub = stub_of(mesh.b, mesh)
    await stub.echo(Buffer(bytes(5000)), "")
    assert len([item async for item in stub.items(3, 5000)]) == 3
    for name in ("echo", "items"):
        check_outcome(mesh, name, local=True)
        for stats in both(mesh, name, mesh.b):
            assert stats.bytes_in == stats.bytes_out == 0


# --------------------------------------------------------------------- outcomes


async def finished() -> None:
    """Let both ends hear of what was done."""
    await asyncio.sleep(1.0)


def call_of(kind: str, stub: Service, *, then: str) -> Awaitable[None]:
    """A call of a kind that goes on until `then`: it holds, or fails."""
    if kind == "upload":
        return stub.total(_items(3, then), hold=True)  # type: ignore[return-value]
    if kind == "stream":
        return collect(stub.items(3, 100, then), [])
    if kind == "both ways":
        return collect(stub.mirror(_numbers(then)), [])
    return stub.fail() if then == "fail" else stub.hold(Buffer(b""))


async def _items(n: int, then: str) -> AsyncIterator[Buffer]:
    for _ in range(n):
        yield Buffer(b"")
    if then == "fail":
        raise KeyError


async def _numbers(then: str) -> AsyncIterator[int]:
    yield 1
    if then == "fail":
        raise KeyError
    await asyncio.Event().wait()


NAMES = {"call": "hold", "upload": "total", "stream": "items", "both ways": "mirror"}
KINDS = tuple(NAMES)


@pytest.mark.parametrize("kind", KINDS)
async def test_one_that_is_cancelled(mesh: Mesh, any_stub: Service, local: bool, kind: str) -> None:
    task = asyncio.ensure_future(call_of(kind, any_stub, then="hold"))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await finished()
    check_outcome(mesh, NAMES[kind], "CancelledError", "CallCancelledError", local=local)


@pytest.mark.parametrize("kind", KINDS)
async def test_one_that_is_late(mesh: Mesh, service: Service, local: bool, kind: str) -> None:
    late = stub_of(mesh.b if local else mesh.a, mesh, timeout=0.5)
    with pytest.raises(DeadlineError):
        await call_of(kind, late, then="hold")
    await finished()
    check_outcome(mesh, NAMES[kind], "DeadlineError", "DeadlineError", local=local)


@pytest.mark.parametrize(
    ("kind", "name", "raised", "called", "served"),
    [
        ("call", "fail", RemoteError, "RemoteError", "ValueError"),
        ("stream", "items", RemoteError, "RemoteError", "ValueError"),
        # The caller's own iterator fails; the handler hears of that as a remote error.
        ("upload", "total", KeyError, "KeyError", "RemoteError"),
        ("both ways", "mirror", KeyError, "KeyError", "RemoteError"),
    ],
)
async def test_one_that_fails(
    mesh: Mesh,
    any_stub: Service,
    local: bool,
    kind: str,
    name: str,
    raised: type[Exception],
    called: str,
    served: str,
) -> None:
    with pytest.raises(raised):
        await call_of(kind, any_stub, then="fail")
    await finished()
    check_outcome(mesh, name, called, served, local=local)


@pytest.mark.parametrize("kind", KINDS)
async def test_one_whose_link_is_lost(mesh: Mesh, stub: Service, kind: str) -> None:
    task = asyncio.ensure_future(call_of(kind, stub, then="hold"))
    await asyncio.sleep(0.5)
    mesh.network.partition(mesh.a.local, mesh.b.local)
    with pytest.raises((CallLostError, StreamTruncatedError)) as error:
        await task
    await finished()
    check_outcome(mesh, NAMES[kind], error.typename, "LinkLostError")


@pytest.mark.parametrize("way", ["break", "aclose", "from another task"])
@pytest.mark.parametrize("kind", ["stream", "both ways"])
async def test_a_stream_that_is_left(
    mesh: Mesh, any_stub: Service, local: bool, kind: str, way: str
) -> None:
    items: Any = any_stub.items(3, 100, "hold") if kind == "stream" else None
    items = items or any_stub.mirror(_numbers("hold"))
    async for _ in items:
        break
    if way == "break":
        del items
    elif way == "aclose" or local:
        await items.aclose()
    else:
        reader = asyncio.ensure_future(collect(items, []))
        await asyncio.sleep(0.1)
        await items.aclose()
        await reader
    await finished()
    caller = mesh.b if local else None
    called, served = both(mesh, NAMES[kind], caller)
    assert (called.errors, served.errors) == ({"CancelledError": 1}, {"CallCancelledError": 1})
    assert called.in_flight == served.in_flight == 0
    assert sum(called.buckets) == called.calls == served.calls == sum(served.buckets)


async def test_a_stream_whose_items_the_caller_stops_while_the_error_waits(
    mesh: Mesh, stub: Service
) -> None:
    items: Any = stub.items(100, 50_000, "fail")
    await anext(items)
    await asyncio.sleep(1.0)  # the window is full, and nobody reads
    await items.aclose()
    await finished()
    check_outcome(mesh, "items", "CancelledError", "CallCancelledError")


@pytest.mark.parametrize("far", [True, False])
async def test_those_that_wait_for_a_place(mesh: Mesh, service: Service, far: bool) -> None:
    rpc = mesh.a if far else mesh.b
    stub = stub_of(rpc, mesh)
    running = asyncio.ensure_future(stub.single())
    await asyncio.sleep(0.1)
    late = asyncio.ensure_future(stub_of(rpc, mesh, timeout=0.5).single())
    await asyncio.sleep(0.1)
    with pytest.raises(BusyError):
        await stub.single()
    with pytest.raises(DeadlineError):
        await late
    left = asyncio.ensure_future(stub.single())
    await asyncio.sleep(0.1)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    await finished()
    service.release.set()
    await running
    called, served = both(mesh, "single", rpc)
    assert served.errors == {"BusyError": 1, "DeadlineError": 1, "CallCancelledError": 1}
    assert called.errors == {"BusyError": 1, "DeadlineError": 1, "CancelledError": 1}
    for stats in (called, served):
        assert (stats.calls, stats.in_flight, stats.queued, sum(stats.buckets)) == (4, 0, 0, 4)


@pytest.mark.parametrize("size", [1, 5000])
async def test_arguments_that_do_not_fit(mesh: Mesh, service: Service, size: int) -> None:
    wrong = mesh.a.client(mesh.b.local, Wrong, SERVICE)
    with pytest.raises(BadArgumentsError):
        await wrong.hold((Buffer(bytes(size)), 1))
    check_outcome(mesh, "hold", "BadArgumentsError", "BadArgumentsError")
    check_bytes(mesh, "hold")


async def test_a_stream_whose_arguments_do_not_fit(mesh: Mesh, service: Service) -> None:
    with pytest.raises(BadArgumentsError):
        await collect(mesh.a.client(mesh.b.local, Wrong, SERVICE).items("x"), [])
    check_outcome(mesh, "items", "BadArgumentsError", "BadArgumentsError")


async def test_a_call_that_is_cancelled_while_its_body_arrives(mesh: Mesh, stub: Service) -> None:
    task = asyncio.ensure_future(stub.hold(Buffer(bytes(50_000_000))))
    await asyncio.sleep(0.035)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await finished()
    check_outcome(mesh, "hold", "CancelledError", "CallCancelledError")


async def test_a_peer_that_is_not_there(mesh: Mesh, service: Service) -> None:
    mesh.network.partition(mesh.a.local, mesh.b.local)
    calls: list[Callable[[Service], Awaitable[Any]]] = [
        lambda stub: stub.fail(),
        lambda stub: stub.total(_items(3, "")),
        lambda stub: collect(stub.items(3, 1), []),
    ]
    for call in calls:
        with contextlib.suppress(Exception):
            await call(stub_of(mesh.a, mesh))
    for name in ("fail", "total", "items"):
        called, served = both(mesh, name)
        assert (called.calls, called.in_flight, sum(called.buckets)) == (1, 0, 1)
        assert called.errors == {"UnreachableError": 1}
        assert served.calls == 0
