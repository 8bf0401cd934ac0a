"""Calls as users make them, over a link and to oneself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from lattica.config import RpcConfig
from lattica.errors import (
    BadArgumentsError,
    BadResultError,
    BusyError,
    CallCancelledError,
    CallLostError,
    DeadlineError,
    LinkLostError,
    NameTakenError,
    RemoteError,
    UnknownMethodError,
    UnreachableError,
)
from lattica.identity.keys import Identity
from lattica.rpc import Buffer, Rpc, caller, trace_id
from lattica.rpc.builtin import install, peer_client
from tests.rpc.mesh import Mesh
from tests.rpc.services import Bench

pytestmark = pytest.mark.anyio


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with Mesh() as mesh:
        yield mesh


@pytest.fixture
def bench(mesh: Mesh) -> Bench:
    bench = Bench()
    mesh.b.register("bench", bench)
    return bench


@pytest.fixture(params=["link", "local"])
def stub(mesh: Mesh, bench: Bench, request: pytest.FixtureRequest) -> Bench:
    rpc: Rpc = mesh.a if request.param == "link" else mesh.b
    return rpc.client(mesh.b.local, Bench, "bench", timeout=5)


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 16 * 1024 + 1, 3_000_000])
async def test_buffers_of_any_size_come_back(stub: Bench, size: int) -> None:
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    assert bytes(await stub.echo(Buffer(data))) == data


@pytest.mark.parametrize("size", [100, 200_000, 5_000_000])
async def test_long_messages_need_no_buffer(stub: Bench, size: int) -> None:
    assert await stub.text(size) == "x" * size
    assert await stub.measure("y" * size) == size


async def test_arguments_and_defaults(stub: Bench) -> None:
    assert await stub.add(2) == 3
    assert await stub.add(2, b=5) == 7


async def test_wrong_arguments_are_told_before_anything_is_sent(stub: Bench, bench: Bench) -> None:
    with pytest.raises(BadArgumentsError, match="add"):
        await stub.add("two")  # type: ignore[arg-type]
    with pytest.raises(BadArgumentsError, match="missing"):
        await stub.add()  # type: ignore[call-arg]
    with pytest.raises(AttributeError, match="subtract"):
        stub.subtract  # type: ignore[attr-defined] # noqa: B018


async def test_a_handlers_error_arrives_with_its_traceback(stub: Bench) -> None:
    with pytest.raises(RemoteError, match="ValueError on b: no such luck") as caught:
        await stub.fail("no such luck")
    assert caught.value.type_name == "ValueError"
    assert "in fail" in caught.value.remote_traceback


async def test_our_own_errors_arrive_as_themselves(stub: Bench) -> None:
    with pytest.raises(NameTakenError, match="the name is taken"):
        await stub.taken()
    with pytest.raises(BusyError) as caught:
        await stub.busy()
    assert caught.value.retry_after == 1.5


async def test_a_result_of_the_wrong_type(stub: Bench) -> None:
    with pytest.raises(BadResultError, match="wrong"):
        await stub.wrong()


async def test_a_handler_that_cancels_itself_or_leaves(stub: Bench) -> None:
    with pytest.raises(CallCancelledError):
        await stub.cancel_itself()
    with pytest.raises(RemoteError, match="SystemExit"):
        await stub.leave()
    assert await stub.add(1) == 2


async def test_a_handler_knows_its_caller(stub: Bench) -> None:
    name, has_deadline, trace = await stub.who()
    assert name in ("a", "b")
    assert has_deadline
    assert trace == b""


async def test_a_trace_id_goes_along(stub: Bench) -> None:
    token = trace_id.set(b"0123456789abcdef")
    try:
        assert (await stub.who())[2] == b"0123456789abcdef"
    finally:
        trace_id.reset(token)


async def test_caller_outside_a_handler() -> None:
    with pytest.raises(LookupError, match="inside a handler"):
        caller()


@pytest.mark.parametrize("end", ["a", "b"])
async def test_a_handler_that_never_returns_ends_at_the_deadline(
    mesh: Mesh, bench: Bench, end: str
) -> None:
    rpc: Rpc = getattr(mesh, end)
    impatient = rpc.client(mesh.b.local, Bench, "bench", timeout=0.05)
    start = asyncio.get_running_loop().time()
    with pytest.raises(DeadlineError):
        await impatient.hang()
    assert 0.05 <= asyncio.get_running_loop().time() - start < 1
    async with asyncio.timeout(2):
        await bench.cancelled.wait()


async def test_cancelling_the_caller_cancels_the_handler(stub: Bench, bench: Bench) -> None:
    task = asyncio.create_task(stub.hang())
    async with asyncio.timeout(2):
        await bench.started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await bench.cancelled.wait()
    assert bench.running == 0


async def test_unknown_names_say_what_exists(mesh: Mesh, bench: Bench) -> None:
    with pytest.raises(UnknownMethodError, match="bench"):
        await mesh.a.client(mesh.b.local, Bench, "bank").add(1)
    mesh.b.unregister("bench")
    with pytest.raises(UnknownMethodError, match="none"):
        await mesh.a.client(mesh.b.local, Bench, "bench").add(1)
    assert mesh.b.counters["refused:unknown_method"] == 2


async def test_both_directions_at_once(mesh: Mesh) -> None:
    for rpc in (mesh.a, mesh.b):
        rpc.register("bench", Bench())
    ab = mesh.a.client(mesh.b.local, Bench, "bench")
    ba = mesh.b.client(mesh.a.local, Bench, "bench")
    assert (await ab.who())[0] == "a"
    assert (await ba.who())[0] == "b"
    assert await asyncio.gather(*(ab.add(i) for i in range(100)), *(ba.add(i) for i in range(100)))


async def test_the_acceptor_may_call_first(mesh: Mesh, bench: Bench) -> None:
    mesh.a.register("bench", Bench())
    await mesh.a.links.connect(mesh.b.local)
    assert await mesh.b.client(mesh.a.local, Bench, "bench").add(1) == 2


async def test_nobody_there(mesh: Mesh) -> None:
    gone = Identity.generate().peer_id
    with pytest.raises(UnreachableError):
        await mesh.a.client(gone, Bench, "bench").add(1)
    assert await asyncio.gather(
        *(mesh.a.client(gone, Bench, "bench").add(1) for _ in range(3)), return_exceptions=True
    )


async def test_a_name_is_served_once(mesh: Mesh, bench: Bench) -> None:
    with pytest.raises(ValueError, match="registered already"):
        mesh.b.register("bench", Bench())


async def test_stats_and_repr_tell_what_goes_on(mesh: Mesh, bench: Bench) -> None:
    stub = mesh.a.client(mesh.b.local, Bench, "bench")
    await stub.add(1)
    with pytest.raises(RemoteError):
        await stub.fail("x")
    task = asyncio.create_task(stub.wait())
    async with asyncio.timeout(2):
        await bench.started.wait()
    served = mesh.b.stats().served
    assert [served[f"bench.{name}"].calls for name in ("add", "fail", "wait")] == [1, 1, 1]
    assert [served[f"bench.{name}"].in_flight for name in ("add", "fail", "wait")] == [0, 0, 1]
    assert served["bench.fail"].errors == {"ValueError": 1}
    assert repr(mesh.a) == "Rpc(a: [], 1 links, 1 calls out)"
    assert "bench" in repr(stub)
    bench.release.set()
    assert await task == "released"


async def test_an_rpc_that_is_not_running() -> None:
    mesh = Mesh()
    stub = mesh.a.client(mesh.b.local, Bench, "bench")
    with pytest.raises(LinkLostError, match="not running"):
        await stub.add(1)
    async with mesh:
        pass
    with pytest.raises(LinkLostError, match="not running"):
        await stub.add(1)


async def test_leaving_ends_handlers_and_calls() -> None:
    bench = Bench()
    async with Mesh() as mesh:
        mesh.b.register("bench", bench)
        task = asyncio.create_task(mesh.a.client(mesh.b.local, Bench, "bench").hang())
        await bench.started.wait()
    assert bench.cancelled.is_set()
    with pytest.raises(CallLostError, match="shutting down"):
        await task


async def test_the_bodys_own_error_is_not_wrapped() -> None:
    with pytest.raises(KeyError):
        async with Mesh():
            raise KeyError("mine")


async def test_the_built_in_service(mesh: Mesh) -> None:
    install(mesh.b, version="1.2")
    peer = peer_client(mesh.stranger, mesh.b.local)
    assert await peer.ping(Buffer(b"x")) == Buffer(b"x")
    assert await peer.ping() is None
    hello = await peer.hello()
    assert (hello.peer, hello.name, hello.version) == (mesh.b.local, "b", "1.2")


async def test_inline_and_streamed_buffers_in_one_call() -> None:
    async with Mesh(RpcConfig(inline_limit=0)) as mesh:
        mesh.b.register("bench", Bench())
        stub = mesh.a.client(mesh.b.local, Bench, "bench")
        for size in (0, 1, 100):
            assert len(await stub.echo(Buffer(bytes(size)))) == size
