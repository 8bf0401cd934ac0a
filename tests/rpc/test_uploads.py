"""Items from the caller: typed, with back-pressure and half-close, never silently short."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from lattica.errors import (
    BadArgumentsError,
    CallCancelledError,
    CallLostError,
    DeadlineError,
    RemoteError,
    StreamTruncatedError,
)
from lattica.rpc import Buffer, Rpc, method
from lattica.rpc.methods import methods_of
from lattica.rpc.uploads import CLEAN_UP
from tests.rpc.mesh import WINDOW, Mesh, collect, until
from tests.rpc.upload_services import Intake, Producer

pytestmark = pytest.mark.anyio


@pytest.fixture
def intake(mesh: Mesh) -> Intake:
    intake = Intake()
    mesh.b.register("intake", intake)
    return intake


@pytest.fixture(params=["link", "local"])
def stub(mesh: Mesh, intake: Intake, request: pytest.FixtureRequest) -> Intake:
    rpc: Rpc = mesh.a if request.param == "link" else mesh.b
    return rpc.client(mesh.b.local, Intake, "intake", stream_timeout=10)


@pytest.fixture
def far(mesh: Mesh, intake: Intake) -> Intake:
    return mesh.a.client(mesh.b.local, Intake, "intake", stream_timeout=10)


@pytest.fixture
def producer() -> Producer:
    return Producer()


async def settle(producer: Producer) -> int:
    """How much was produced once the producer produces no more."""
    before = -1
    while producer.made != before:
        before = producer.made
        for _ in range(50):
            await asyncio.sleep(0)
    return before


@pytest.mark.parametrize("n", [0, 1, 5000])
async def test_all_items_arrive_and_one_value_returns(
    stub: Intake, producer: Producer, n: int
) -> None:
    assert await stub.total(producer.count(n)) == sum(range(n))
    assert producer.ended.is_set()


async def test_any_iterable_will_do(stub: Intake) -> None:
    class Own:
        def __aiter__(self) -> AsyncIterator[int]:
            return Producer().count(4)

    for items in ([0, 1, 2, 3], range(4), (i for i in range(4)), Own()):
        assert await stub.total(cast(Any, items)) == 6


async def test_large_items_among_small_ones_with_other_arguments(stub: Intake) -> None:
    parts = [bytes([i]) * (5 * WINDOW if i % 3 == 0 else i) for i in range(10)]
    got = await stub.join(b"|", cast(Any, [Buffer(part) for part in parts]), end=b".")
    assert bytes(got) == b"|".join(parts) + b"."


async def test_the_handler_may_return_before_all_was_sent(stub: Intake, producer: Producer) -> None:
    assert await stub.first(producer.count(10_000_000), 3) == [0, 1, 2]
    assert producer.ended.is_set()
    assert producer.made < 20_000


async def test_a_handler_may_read_in_two_loops(stub: Intake, producer: Producer) -> None:
    assert await stub.twice(producer.count(10)) == (3, sum(range(3, 10)))


async def test_an_error_of_the_iterator_reaches_both_sides(
    stub: Intake, intake: Intake, producer: Producer
) -> None:
    with pytest.raises(KeyError, match="my own"):
        await stub.total(producer.count(10, fail_at=7))
    assert intake.taken == 7  # all that came before it
    (error,) = intake.errors
    assert isinstance(error, RemoteError)
    assert error.type_name == "KeyError"
    assert error.remote_message == "'my own'"
    assert "in count" in error.remote_traceback


async def test_a_handler_that_forgives_hides_no_error_of_the_iterator(
    stub: Intake, intake: Intake, producer: Producer
) -> None:
    with pytest.raises(KeyError, match="my own"):
        await stub.forgiving(producer.count(3, fail_at=1))
    assert isinstance(intake.errors[0], RemoteError)


async def test_an_iterator_that_is_cancelled_by_itself(stub: Intake, intake: Intake) -> None:
    async def cancelled() -> AsyncIterator[int]:
        yield 1
        raise asyncio.CancelledError

    with pytest.raises(CallCancelledError, match="iterator"):
        await stub.total(cancelled())
    assert isinstance(intake.errors[0], CallCancelledError)


async def test_an_item_of_the_wrong_type(stub: Intake, intake: Intake) -> None:
    with pytest.raises(BadArgumentsError, match=r"total\(\): an item of 'items'.*Expected `int`"):
        await stub.total(cast(Any, [1, 2, "three", 4]))
    assert intake.taken == 2
    assert isinstance(intake.errors[0], BadArgumentsError)


@pytest.mark.parametrize("source", [3, None, "text", b"bytes"])
async def test_what_yields_no_items_is_told_at_the_call(stub: Intake, source: Any) -> None:
    with pytest.raises(BadArgumentsError, match="'items' takes an async iterable"):
        stub.total(source)


async def test_an_error_of_the_handler_ends_the_iterator(stub: Intake, producer: Producer) -> None:
    with pytest.raises(RemoteError, match="ValueError on b: no 0"):
        await stub.fail(producer.count(10_000_000))
    assert producer.ended.is_set()


async def test_a_handler_that_takes_nothing_stops_the_iterator(
    far: Intake, intake: Intake, producer: Producer
) -> None:
    call = asyncio.ensure_future(far.slow(producer.parts(300, 1024)))
    async with asyncio.timeout(5):
        await intake.started.wait()
        # A window on its way, and the item that the pump holds.
        assert await settle(producer) <= WINDOW // 1024 + 1
        intake.release.set()
        assert await call == 300 * 1024


async def test_uploads_that_stand_still_delay_nobody_else(far: Intake, intake: Intake) -> None:
    """There are places for six item streams here; the others wait for one."""
    calls = [asyncio.ensure_future(far.slow(Producer().parts(100, 4096))) for _ in range(20)]
    async with asyncio.timeout(10):
        await intake.started.wait()
        assert await far.ping() == 1
        intake.release.set()
        assert await asyncio.gather(*calls) == [409_600] * 20


async def test_half_close_both_ways(stub: Intake, producer: Producer) -> None:
    """The end of the caller's items ends that direction only."""
    assert [i async for i in stub.after(producer.count(3000))] == list(range(3000))


async def test_items_both_ways_at_once(stub: Intake, intake: Intake, producer: Producer) -> None:
    doubled = stub.double(producer.count(100_000))
    for i in range(300):
        assert await anext(doubled) == 2 * i
    assert intake.taken < 50_000  # neither side runs ahead
    assert [i async for i in doubled] == [2 * i for i in range(300, 100_000)]
    assert producer.ended.is_set()


async def test_an_answer_to_each_item_before_the_next_is_made(stub: Intake) -> None:
    answers: list[int] = []
    more = asyncio.Event()

    async def questions() -> AsyncIterator[int]:
        for i in range(20):
            yield i
            await more.wait()
            more.clear()

    async for answer in stub.double(questions()):
        answers.append(answer)
        more.set()
    assert answers == [2 * i for i in range(20)]


async def test_a_generator_may_end_before_all_was_sent(stub: Intake, producer: Producer) -> None:
    assert [i async for i in stub.some(producer.count(10_000_000), 5)] == [0, 1, 2, 3, 4]
    assert producer.ended.is_set()


async def test_an_error_of_the_iterator_ends_the_items_that_come_back(
    stub: Intake, producer: Producer
) -> None:
    got: list[int] = []
    with pytest.raises(KeyError, match="my own"):
        await collect(stub.double(producer.count(10, fail_at=4)), got)
    assert got == [0, 2, 4, 6]


async def test_closing_the_items_ends_both_directions(
    stub: Intake, intake: Intake, producer: Producer
) -> None:
    items = stub.double(producer.silent())
    assert await anext(items) == 0
    await cast(Any, items).aclose()
    assert producer.ended.is_set()
    async with asyncio.timeout(2):
        await intake.ended.wait()


async def test_breaking_out_ends_both_directions(
    stub: Intake, intake: Intake, producer: Producer
) -> None:
    async for _ in stub.double(producer.silent()):
        break
    async with asyncio.timeout(2):
        await intake.ended.wait()
        await producer.ended.wait()


async def test_cancelling_the_caller_reaches_handler_and_iterator(
    stub: Intake, intake: Intake, producer: Producer
) -> None:
    call = asyncio.ensure_future(stub.hang(producer.silent(5)))
    async with asyncio.timeout(2):
        await until(lambda: intake.taken == 5)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        assert producer.ended.is_set()
        await intake.ended.wait()
    assert isinstance(intake.errors[0], asyncio.CancelledError)


async def test_the_deadline_reaches_handler_and_iterator(
    mesh: Mesh, intake: Intake, producer: Producer
) -> None:
    for rpc in (mesh.a, mesh.b):
        stub = rpc.client(mesh.b.local, Intake, "intake", stream_timeout=0.05)
        with pytest.raises(DeadlineError):
            await stub.hang(producer.silent())
        assert producer.ended.is_set()
        async with asyncio.timeout(2):
            await intake.ended.wait()


async def test_without_a_deadline_an_upload_outlives_the_timeout(mesh: Mesh, far: Intake) -> None:
    async def slowly() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(0.05)
        yield 2

    assert await far.ping() == 1  # connected
    stub = mesh.a.client(mesh.b.local, Intake, "intake", timeout=0.02)
    assert await stub.total(slowly()) == 3


async def test_an_iterator_that_will_not_end_does_not_hold_the_call(
    mesh: Mesh, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lattica.rpc.uploads.CLEAN_UP", 0.05)
    assert CLEAN_UP > 0.05
    release = asyncio.Event()

    async def stubborn() -> AsyncIterator[int]:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()
        yield 1

    stub = mesh.a.client(mesh.b.local, Intake, "intake", stream_timeout=0.05)
    async with asyncio.timeout(2):
        with pytest.raises(DeadlineError):
            await stub.total(stubborn())
    release.set()


async def test_a_lost_link_ends_both_sides(
    mesh: Mesh, far: Intake, intake: Intake, producer: Producer
) -> None:
    call = asyncio.ensure_future(far.hang(producer.silent(5)))
    async with asyncio.timeout(2):
        await until(lambda: intake.taken == 5)
        mesh.network.partition(mesh.a.local, mesh.b.local)
        with pytest.raises(CallLostError) as caught:
            await call
        assert caught.value.may_have_run
        assert producer.ended.is_set()
        await intake.ended.wait()


async def test_a_stream_cut_in_the_middle_is_no_end(mesh: Mesh, intake: Intake) -> None:
    """The caller's channel resets its stream while the call goes on."""
    sent = asyncio.Event()

    async def items() -> AsyncIterator[int]:
        yield 1
        await sent.wait()
        yield 2

    stub = mesh.a.client(mesh.b.local, Intake, "intake", stream_timeout=5)
    call = asyncio.ensure_future(stub.total(items()))
    await until(lambda: intake.taken == 1)
    channel = next(iter(mesh.a._sessions.values())).channel
    (stream,) = channel.sending._sources
    channel.sending.close_source(stream, reset=1)
    with pytest.raises(StreamTruncatedError, match="cut"):
        await call
    assert isinstance(intake.errors[0], StreamTruncatedError)


async def test_a_method_that_takes_items_elsewhere_only(mesh: Mesh, intake: Intake) -> None:
    """The two ends know the method by different signatures: a typed error, the link stays."""

    class Other:
        @method()
        async def total(self, items: int | None) -> int:
            return items or 0

        @method()
        async def plain(self, items: AsyncIterator[int]) -> int:
            raise NotImplementedError

    class Served:
        @method()
        async def plain(self, items: int | None) -> int:
            return 7 if items is None else items

    mesh.b.register("served", Served())
    other = mesh.a.client(mesh.b.local, Other, "intake", timeout=5)
    with pytest.raises(BadArgumentsError, match="total"):
        await other.total(3)
    served = mesh.a.client(mesh.b.local, Other, "served", stream_timeout=5)
    with pytest.raises(BadArgumentsError, match="got `ext`"):
        await served.plain(Producer().count(3))
    assert mesh.b.counters["bad_frame"] == 0


def test_classes_with_streams_that_cannot_be_served_say_why() -> None:
    class Two:
        @method()
        async def bad(self, a: AsyncIterator[int], b: AsyncIterator[int]) -> int:
            return 0

    class Default:
        @method()
        async def bad(self, a: AsyncIterator[int] | None = None) -> int:
            return 0

    class Nested:
        @method()
        async def bad(self, a: list[AsyncIterator[int]]) -> int:
            return 0

    for service in (Two, Default, Nested):
        with pytest.raises(TypeError, match="bad: .*stream"):
            methods_of(service)
