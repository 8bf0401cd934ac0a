"""Whatever a peer sends: a typed error or a drop, counted; never a crash, memory bounded."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lattica.config import MIB, RpcConfig
from lattica.rpc import Buffer, control, sending
from lattica.rpc import messages as m
from lattica.rpc.framing import frame
from tests.rpc.mesh import WINDOW, until
from tests.rpc.puppet import END, NIL, Stage, call, item
from tests.rpc.services import Bench

pytestmark = pytest.mark.anyio


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage(RpcConfig(stream_window=WINDOW, max_streams_per_peer=8)) as stage:
        yield stage


BAD_CONTROL: dict[str, list[bytes]] = {
    "no hello": [frame(msgspec.msgpack.encode([call(0)]))],
    "nothing at all": [frame(b"\x90")],
    "a huge length": [b"\xff\xff\xff\xff"],
    "an empty frame": [b"\0\0\0\0"],
    "not msgpack": [frame(b"\xc1\xc1\xc1")],
    "not a message": [frame(msgspec.msgpack.encode([{"a": 1}]))],
    "an unknown tag": [frame(msgspec.msgpack.encode([[99, 1]]))],
    "deep nesting": [frame(b"\x91\x99\x01\x00\xa1a\xa1b\x01" + b"\x91" * 100_000 + b"\xc0")],
    "a claimed huge array": [frame(b"\xdd\xff\xff\xff\xff")],
    "a claimed huge string": [frame(b"\x91\x93\x03\x00\xdb\xff\xff\xff\xff")],
    "a foreign version": [frame(msgspec.msgpack.encode([m.Hello(99, 1, 1)]))],
    "two hellos": [frame(msgspec.msgpack.encode([m.Hello(m.VERSION, 1, 1)]))] * 2,
}


@pytest.mark.parametrize("name", BAD_CONTROL)
async def test_a_bad_control_stream_closes_the_link(stage: Stage, name: str) -> None:
    for chunk in BAD_CONTROL[name]:
        stage.puppet.link.write(stage.puppet.control, chunk)
    await stage.refused()


BAD_MESSAGES: dict[str, list[Any]] = {
    "ids that do not grow": [call(5), call(5)],
    "a negative id": [[4, -1]],
    "an id that is a name": [[4, "x"]],
    "invalid UTF-8": [msgspec.Raw(b"\x95\x01\x00\xa2\xff\xfe\xa3add\x01")],
    "a name too long": [[1, 0, "x" * 129, "add", 1.0, [1]]],
    "too many buffers": [[1, 0, "bench", "add", 1.0, [1], [1] * (m.MAX_BUFFERS + 1)]],
    "a negative size": [[1, 0, "bench", "add", 1.0, [1], [-1]]],
    "a trace of the wrong length": [call(0, trace=b"short")],
    "the result of nothing": [m.Result(7, NIL)],
    "the failure of nothing": [m.Failure(7, "x", "y")],
    "an acknowledgement of nothing": [m.Ack(10**9)],
    "fields of tomorrow": [[4, 1, 2, 3]],
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
async def test_a_bad_message_closes_the_link(stage: Stage, name: str) -> None:
    stage.puppet.greet()
    stage.puppet.say(*BAD_MESSAGES[name])
    await stage.refused()


async def test_the_control_stream_may_neither_end_nor_have_a_second(stage: Stage) -> None:
    stage.puppet.greet()
    stage.puppet.link.write(stage.puppet.control, b"", end=True)
    await stage.refused(says="ended")


async def test_a_second_control_stream(stage: Stage) -> None:
    stage.puppet.greet()
    stage.puppet.link.write(stage.puppet.link.open_stream(unidirectional=False), b"x")
    await stage.refused(says="second control")


@pytest.mark.parametrize("header", [b"\xff\xff\xff\xff", frame(b"\xc1"), frame(b"\x92\x07\x01")])
async def test_a_bad_header_closes_the_link(stage: Stage, header: bytes) -> None:
    stage.puppet.greet()
    stage.puppet.link.write(stage.puppet.link.open_stream(unidirectional=True), header)
    await stage.refused()


async def test_harmless_oddities_are_ignored(stage: Stage) -> None:
    puppet = stage.puppet
    puppet.greet()
    puppet.say(m.Cancel(0), m.Cancel(10**9), m.Credit(77, 10**15), m.Taken(3))
    puppet.say(call(0))
    puppet.link.reset_stream(puppet.link.open_stream(unidirectional=True), 1)
    await until(lambda: len(puppet.outcomes()) == 1)
    assert isinstance(puppet.outcomes()[0], m.Result)
    assert stage.b.counters["bad_frame"] == 0


@pytest.mark.parametrize("timeout", [-1.0, float("nan"), 0.0, -float("inf")])
async def test_deadlines_that_are_no_times_have_passed(stage: Stage, timeout: float) -> None:
    stage.puppet.greet()
    raw = msgspec.Raw(msgspec.msgpack.encode([]))
    stage.puppet.say(m.Call(0, "bench", "hang", timeout, raw))
    async with asyncio.timeout(2):
        await stage.bench.cancelled.wait()


async def test_bad_arguments_fail_one_call_only(stage: Stage) -> None:
    stage.puppet.greet()
    bad = [("a",), (), (1, 2, 3), {"a": 1}, None, 7]
    stage.puppet.say(*(call(i, args=args) for i, args in enumerate(bad)), call(99))
    await until(lambda: len(stage.puppet.outcomes()) == len(bad) + 1)
    *failures, last = sorted(stage.puppet.outcomes(), key=lambda outcome: outcome.call)
    assert all("BadArgumentsError" in failure.type_name for failure in failures)
    assert isinstance(last, m.Result)


async def test_a_huge_announced_body_costs_nothing_until_it_comes(stage: Stage) -> None:
    stage.puppet.greet()
    stage.puppet.say(call(0, "echo", [0], sizes=(4 * 1024 * MIB,)))
    stage.puppet.say(call(1, "echo", [0], sizes=(2**60,)))  # refused at once
    await until(lambda: len(stage.puppet.outcomes()) == 1)
    assert "at most" in stage.puppet.outcomes()[0].message
    served = next(iter(stage.b._sessions.values())).serving._calls[0]
    assert served.body is not None
    assert served.body.arrived == 0
    stage.puppet.say(m.Cancel(0))
    await until(lambda: not len(next(iter(stage.b._sessions.values())).serving))


async def test_bytes_beyond_the_credit_close_the_link(stage: Stage) -> None:
    stage.puppet.greet()
    stage.puppet.say(call(0, "echo", [0], sizes=(10 * MIB,)))
    stream = stage.puppet.open(m.Body(0, False))
    stage.puppet.link.write(stream, bytes(2 * WINDOW + 1))
    await stage.refused(says="credit")


@pytest.mark.parametrize("sent", [0, 99, 101])
async def test_bodies_of_another_length_than_announced(stage: Stage, sent: int) -> None:
    stage.puppet.greet()
    stage.puppet.say(call(0, "echo", [0], sizes=(100,)))
    stage.puppet.link.write(stage.puppet.open(m.Body(0, False)), bytes(sent), end=True)
    await stage.refused(says="instead of 100")


async def test_a_body_that_is_given_up_fails_its_call(stage: Stage) -> None:
    stage.puppet.greet()
    stage.puppet.say(call(0, "echo", [0], sizes=(100,)))
    stage.puppet.link.reset_stream(stage.puppet.open(m.Body(0, False)), 1)
    early = stage.puppet.open(m.Body(1, False))
    stage.puppet.link.reset_stream(early, 1)
    stage.puppet.say(call(1, "echo", [0], sizes=(100,)))
    await until(lambda: len(stage.puppet.outcomes()) == 2)
    assert all("ended before" in failure.message for failure in stage.puppet.outcomes())


async def test_a_body_before_its_call(stage: Stage) -> None:
    stage.puppet.greet()
    stage.puppet.link.write(stage.puppet.open(m.Body(0, False)), b"x" * 100, end=True)
    await asyncio.sleep(0)
    stage.puppet.say(call(0, "echo", [0], sizes=(100,)))
    await until(lambda: len(stage.puppet.outcomes()) == 1)
    assert bytes(stage.puppet.outcomes()[0].value)[-100:] == b"x" * 100


async def test_bodies_without_a_call_are_bounded(stage: Stage) -> None:
    stage.puppet.greet()
    for i in range(9):
        stage.puppet.open(m.Body(i, False))
    await stage.refused(says="without a call")


async def test_bodies_of_the_refused_are_stopped(stage: Stage) -> None:
    stage.puppet.greet()
    stage.puppet.say(call(0, "none", sizes=(10 * MIB,)))
    await until(lambda: len(stage.puppet.outcomes()) == 1)
    stream = stage.puppet.open(m.Body(0, False))
    stage.puppet.link.write(stream, bytes(WINDOW))
    await until(lambda: stage.puppet.stopped == {stream: m.REFUSED})


async def test_two_bodies_for_one_call(stage: Stage) -> None:
    stage.puppet.greet()
    stage.puppet.say(call(0, "echo", [0], sizes=(100,)))
    stage.puppet.open(m.Body(0, False))
    stage.puppet.open(m.Body(0, False))
    await stage.refused(says="two bodies")


async def test_data_for_calls_never_made(stage: Stage) -> None:
    stage.puppet.greet()
    stage.puppet.open(m.Items(0))
    await stage.refused(says="never made")


async def test_a_peer_that_asks_and_never_listens_is_cut_off(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CONTROL_LIMIT", 100_000)
    stage.puppet.greet()
    for i in range(3000):
        stage.puppet.say(call(i, "none"))
    await stage.refused(says="takes nothing in")


async def test_results_wait_for_a_peer_that_does_not_listen(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CONTROL_WINDOW", 10_000)
    puppet = stage.puppet
    puppet.greet()
    for i in range(200):
        puppet.say(call(i, "text", [1000]))
    await until(lambda: stage.b.stats().served["bench.text"].in_flight > 100)
    assert sum(len(bytes(result.value)) for result in puppet.outcomes()) < 30_000
    while len(puppet.outcomes()) < 200:
        channel_b = next(iter(stage.b._sessions.values())).channel
        puppet.say(m.Ack(channel_b.control._sent))
        before = len(puppet.outcomes())
        await until(lambda before=before: len(puppet.outcomes()) > before)  # type: ignore[misc]


# ------------------------------------------------------- a hostile serving side


async def hostile_items(stage: Stage, *chunks: bytes, end: bool = True) -> list[Any]:
    """`b` reads a stream from the puppet, which sends `chunks`; the items and the error."""
    puppet = stage.puppet
    puppet.greet()
    stub = stage.b.client(stage.a.local, Bench, "bench", timeout=2)
    got: list[Any] = []

    async def read() -> None:
        try:
            async for item in stub.count(3):
                got.append(item)  # noqa: PERF401
        except Exception as error:
            got.append(type(error).__name__)

    task = asyncio.create_task(read())
    await until(lambda: any(isinstance(one, m.Call) for one in puppet.heard))
    stream = puppet.open(m.Items(0))
    for chunk in chunks:
        puppet.link.write(stream, chunk)
    if end:
        puppet.link.write(stream, b"", end=True)
    else:
        puppet.link.reset_stream(stream, 7)
    await task
    return got


async def test_a_whole_stream(stage: Stage) -> None:
    assert await hostile_items(stage, item(1), item(2), END) == [1, 2]


async def test_a_stream_without_its_end_is_truncated(stage: Stage) -> None:
    assert await hostile_items(stage, item(1), item(2)) == [1, 2, "StreamTruncatedError"]


async def test_a_stream_cut_in_an_item_is_truncated(stage: Stage) -> None:
    got = await hostile_items(stage, item(1), item(2)[:-1])
    assert got == [1, "StreamTruncatedError"]


async def test_a_stream_cut_in_a_buffer_is_truncated(stage: Stage) -> None:
    assert await hostile_items(stage, item(1), item(0, 100), b"x" * 99) == [
        1,
        "StreamTruncatedError",
    ]


async def test_a_stream_that_is_reset_is_truncated(stage: Stage) -> None:
    assert await hostile_items(stage, item(1), end=False) == [1, "StreamTruncatedError"]


async def test_items_of_another_type(stage: Stage) -> None:
    assert await hostile_items(stage, item(1), item("two"), item(3), END) == [1, "BadResultError"]


async def test_an_item_larger_than_any_body(stage: Stage) -> None:
    got = await hostile_items(stage, item(1), item(0, 2**40))
    assert got == [1, "BadResultError"]


@pytest.mark.parametrize(
    "chunk", [b"\xff\xff\xff\xff", frame(b"\xc1"), END + b"x", frame(b"\x92\x05\x01")]
)
async def test_garbage_in_a_stream_closes_the_link(stage: Stage, chunk: bytes) -> None:
    got = await hostile_items(stage, item(1), chunk)
    assert got == ([1] if chunk.startswith(END) else [1, "CallLostError"])
    await stage.refused()


# ------------------------------------------------------------------ random bytes

chunks = st.lists(st.binary(max_size=60), min_size=1, max_size=8)
messages = st.lists(
    st.one_of(
        st.builds(lambda i, a: call(i, args=a), st.integers(0, 5), st.lists(st.integers(-9, 9))),
        st.builds(m.Cancel, st.integers(0, 9)),
        st.builds(m.Credit, st.integers(0, 9), st.integers(0, 99)),
        st.builds(m.Result, st.integers(0, 3), st.just(NIL)),
        st.lists(st.one_of(st.integers(0, 8), st.text(max_size=3), st.binary(max_size=3))),
    ),
    max_size=6,
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.booleans(), messages, chunks, st.sampled_from(["control", "data"]))
async def test_random_input_is_answered_or_refused(
    greet: bool, said: list[Any], raw: list[bytes], where: str
) -> None:
    async with Stage(RpcConfig(stream_window=WINDOW)) as stage:
        puppet = stage.puppet
        if greet:
            puppet.greet()
        puppet.say(*said)
        target = puppet.control
        if where == "data":
            target = puppet.link.open_stream(unidirectional=True)
        for chunk in raw:
            if puppet.link.is_open:
                puppet.link.write(target, chunk)
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert puppet.error is None or stage.b.counters["bad_frame"] == 1
        echo = stage.stranger.client(stage.b.local, Bench, "bench").echo
        assert await echo(Buffer(b"still here")) == Buffer(b"still here")


async def test_credit_for_more_than_a_window_ahead(stage: Stage) -> None:
    stage.puppet.greet()
    stage.puppet.say(call(0, "parts", [1_000_000, 1000]))
    await until(lambda: bool(stage.puppet.data))
    stream = next(iter(stage.puppet.data))
    stage.puppet.say(m.Credit(stream, 2**50))
    await stage.refused(says="window ahead")


async def test_early_bodies_are_bounded_in_bytes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "SENDING", WINDOW)
    stage.puppet.greet()
    for i in range(3):
        stage.puppet.link.write(stage.puppet.open(m.Body(i, False)), bytes(WINDOW))
    await stage.refused(says="without a message")


async def test_a_body_for_a_result_without_one_is_let_go(stage: Stage) -> None:
    puppet = stage.puppet
    puppet.greet()
    stub = stage.b.client(stage.a.local, Bench, "bench", timeout=2)
    task = asyncio.create_task(stub.add(1))
    await until(lambda: any(isinstance(one, m.Call) for one in puppet.heard))
    stream = puppet.open(m.Body(0, True))
    puppet.link.write(stream, bytes(100))
    await asyncio.sleep(0)
    puppet.say(m.Result(0, msgspec.Raw(b"\x02")))
    assert await task == 2
    await until(lambda: stream in puppet.stopped)
    assert next(iter(stage.b._sessions.values())).channel.receiving._early == 0


async def test_a_call_that_goes_on_does_not_hold_the_frame_it_came_in(stage: Stage) -> None:
    stage.puppet.greet()
    junk = "x" * 200_000
    await until(lambda: bool(stage.b._sessions))
    gc.collect()
    tracemalloc.start()
    try:
        for n in range(50):
            stage.puppet.say(call(2 * n, "hang", ()), call(2 * n + 1, "nothing", (junk,)))
            await until(lambda n=n: len(stage.puppet.outcomes()) == n + 1)  # type: ignore[misc]
        await until(lambda: stage.bench.running == 50)
        assert tracemalloc.get_traced_memory()[0] < 3_000_000
    finally:
        tracemalloc.stop()
