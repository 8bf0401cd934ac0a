"""Whatever a caller sends as its items: a typed error or a drop, and never a short stream."""

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

from lattica.config import RpcConfig
from lattica.errors import BadArgumentsError, RemoteError, StreamTruncatedError
from lattica.rpc import Buffer, sending
from lattica.rpc import messages as m
from lattica.rpc.framing import frame
from tests.faults.baseline import leftovers
from tests.rpc.mesh import WINDOW, until
from tests.rpc.puppet import END, Stage, call, item
from tests.rpc.services import Bench

pytestmark = pytest.mark.anyio
STREAMS = 8
ITEMS = msgspec.msgpack.Ext(1, b"")  # where the items stand among the arguments


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage(RpcConfig(stream_window=WINDOW, max_streams_per_peer=STREAMS)) as stage:
        yield stage
        await until(lambda: not leftovers(stage.b))


def upload(n: int, method: str, *args: Any) -> m.Call:
    return call(n, method, (ITEMS, *args), service="intake")


async def sent(stage: Stage, *chunks: bytes, end: bool = True, early: bool = False) -> Any:
    """`b` sums the items in `chunks`, which come after the call, or before; its outcome."""
    puppet = stage.puppet
    puppet.greet()
    if not early:
        puppet.say(upload(0, "total"))
    stream = puppet.open(m.Items(0, False))
    for chunk in chunks:
        puppet.link.write(stream, chunk)
    if end:
        puppet.link.write(stream, b"", end=True)
    else:
        puppet.link.reset_stream(stream, 7)
    if early:
        await asyncio.sleep(0)
        puppet.say(upload(0, "total"))
    return await puppet.outcome()


def batch(*values: Any) -> bytes:
    raw = msgspec.Raw(msgspec.msgpack.encode(values))
    return frame(msgspec.msgpack.encode(m.Batch(raw)))


def broken(type_name: str) -> bytes:
    return frame(msgspec.msgpack.encode(m.Broken(m.Failure(0, type_name, "as it says"))))


@pytest.mark.parametrize("early", [False, True])
async def test_a_whole_stream(stage: Stage, early: bool) -> None:
    assert await sent(stage, item(1), batch(2, 3), item(4), END, early=early) == 10


SHORT = {
    "after an item": [item(1), item(2)],
    "in an item": [item(1), item(2)[:-1]],
    "in a length": [item(1), b"\0"],
    "in a batch": [item(1), batch(2, 3)[:-1]],
    "in a buffer": [item(1), item(0, 100), b"x" * 99],
    "at once": [],
}


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("chunks", SHORT.values(), ids=SHORT)
async def test_a_stream_that_ends_before_its_end(
    stage: Stage, chunks: list[bytes], early: bool
) -> None:
    assert await sent(stage, *chunks, early=early) == "StreamTruncatedError"
    assert type(stage.intake.errors[0]) is StreamTruncatedError


async def test_a_stream_that_is_reset(stage: Stage) -> None:
    assert await sent(stage, item(1), end=False) == "StreamTruncatedError"


async def test_a_stream_that_is_reset_before_its_call(stage: Stage) -> None:
    assert await sent(stage, item(1), end=False, early=True) == "StreamTruncatedError"


@pytest.mark.parametrize(
    "wrong", [item("two"), batch(2, "three", 4), item(0, 2**40)], ids=["one", "batch", "large"]
)
async def test_items_that_do_not_fit(stage: Stage, wrong: bytes) -> None:
    assert await sent(stage, item(1), wrong, item(5), END) == "BadArgumentsError"
    assert type(stage.intake.errors[0]) is BadArgumentsError
    assert stage.puppet.error is None


@pytest.mark.parametrize("name", ["ValueError", "SystemExit", "KeyboardInterrupt", "__import__"])
async def test_a_forged_error_is_no_more_than_a_remote_error(stage: Stage, name: str) -> None:
    assert await sent(stage, item(1), broken(name)) == "RemoteError"
    (error,) = stage.intake.errors
    assert isinstance(error, RemoteError)
    assert error.type_name == name


GARBAGE = {
    "a huge length": b"\xff\xff\xff\xff",
    "an empty frame": b"\0\0\0\0",
    "not msgpack": frame(b"\xc1"),
    "an unknown tag": frame(b"\x92\x05\x01"),
    "deep nesting": frame(b"\x92\x03" + b"\x91" * 100_000 + b"\xc0"),
    "bytes after the end": END + b"x",
    "two ends": END + END,
    "items after an error": broken("ValueError") + item(1),
}


@pytest.mark.parametrize("chunk", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_closes_the_link(stage: Stage, chunk: bytes) -> None:
    stage.puppet.greet()
    stage.puppet.say(upload(0, "hang"))
    await stage.intake.started.wait()
    stream = stage.puppet.open(m.Items(0, False))
    stage.puppet.link.write(stream, item(1) + chunk)
    await stage.refused()
    await stage.intake.ended.wait()


@pytest.mark.parametrize("early", [False, True])
async def test_more_bytes_than_the_credit(stage: Stage, early: bool) -> None:
    stage.puppet.greet()
    if not early:
        stage.puppet.say(upload(0, "slow"))
    stream = stage.puppet.open(m.Items(0, False))
    stage.puppet.link.write(stream, item(0, 2 * WINDOW) + bytes(WINDOW))
    await stage.refused(says="credit")


@pytest.mark.parametrize("called", [False, True])
async def test_two_streams_for_one_call(stage: Stage, called: bool) -> None:
    stage.puppet.greet()
    if called:
        stage.puppet.say(upload(0, "hang"))
    stage.puppet.open(m.Items(0, False))
    stage.puppet.open(m.Items(0, False))
    await stage.refused(says="two item streams")


async def test_items_that_no_call_comes_for_are_bounded_in_number(stage: Stage) -> None:
    stage.puppet.greet()
    for n in range(STREAMS + 1):
        stage.puppet.open(m.Items(n, False))
    await stage.refused(says="too many")


async def test_and_in_bytes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "SENDING", WINDOW)
    stage.puppet.greet()
    half = (200_000).to_bytes(4, "big")
    for n in range(3):
        stage.puppet.link.write(stage.puppet.open(m.Items(n, False)), half + bytes(WINDOW - 4))
    await stage.refused(says="without a message")


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(
    ("one", "outcome"),
    [
        (call(0), 2),
        (upload(0, "nothing"), "UnknownMethodError"),
        (upload(0, "total", "one too many"), "BadArgumentsError"),
    ],
)
async def test_items_for_a_call_that_takes_none_are_stopped(
    stage: Stage, one: m.Call, outcome: Any, early: bool
) -> None:
    puppet = stage.puppet
    puppet.greet()
    if not early:
        puppet.say(one)
    stream = puppet.open(m.Items(0, False))
    puppet.link.write(stream, item(1))
    if early:
        await asyncio.sleep(0)
        puppet.say(one)
    assert await puppet.outcome() == outcome
    await until(lambda: stream in puppet.stopped)
    puppet.link.reset_stream(stream, puppet.stopped[stream])
    assert puppet.error is None


async def test_a_call_whose_items_never_come_ends_by_its_deadline(stage: Stage) -> None:
    stage.puppet.greet()
    raw = msgspec.Raw(msgspec.msgpack.encode((ITEMS,)))
    stage.puppet.say(m.Call(0, "intake", "total", 0.05, raw))
    await stage.intake.started.wait()
    await stage.intake.ended.wait()
    assert type(stage.intake.errors[0]) is asyncio.CancelledError


async def test_a_stream_whose_handler_has_returned_is_stopped(stage: Stage) -> None:
    puppet = stage.puppet
    puppet.greet()
    puppet.say(upload(0, "first", 1))
    stream = puppet.open(m.Items(0, False))
    puppet.link.write(stream, batch(7, 8, 9))
    assert await puppet.outcome() == [7]
    await until(lambda: stream in puppet.stopped)
    puppet.link.write(stream, b"\xff" * WINDOW)  # nobody looks at it any more
    puppet.link.reset_stream(stream, puppet.stopped[stream])
    assert await stage.stranger.client(stage.b.local, Bench, "bench").echo(Buffer(b"x"))
    assert puppet.error is None


async def test_half_sent_streams_hold_no_more_than_was_sent(stage: Stage) -> None:
    """Slow loris: many calls, each with items of which only the beginning comes."""
    puppet = stage.puppet
    puppet.greet()
    await until(lambda: bool(stage.b._sessions))
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for start in range(0, 500, STREAMS // 2):
            calls = range(start, start + STREAMS // 2)
            puppet.say(*(upload(n, "slow") for n in calls))
            streams = [puppet.open(m.Items(n, False)) for n in calls]
            for stream in streams:
                puppet.link.write(stream, item(0, 10_000_000) + b"x")
            await asyncio.sleep(0)
            puppet.say(*(m.Cancel(n) for n in calls))
            for stream in streams:
                await until(lambda s=stream: s in puppet.stopped)  # type: ignore[misc]
                puppet.link.reset_stream(stream, puppet.stopped[stream])
            puppet.heard.clear()
            puppet.stopped.clear()
            stage.intake.errors.clear()  # their tracebacks hold what the calls held
        await until(lambda: not leftovers(stage.b))
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()
    assert puppet.error is None


pieces = st.one_of(
    st.integers(-9, 9).map(item),
    st.lists(st.integers(-9, 9), max_size=4).map(lambda values: batch(*values)),
    st.sampled_from([END, broken("ValueError"), item("no"), item(0, 3), frame(b"\xc0")]),
    st.binary(max_size=12),
)


@settings(
    max_examples=75,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(pieces, max_size=6), st.data(), st.sampled_from(["end", "reset", "open"]))
async def test_random_items_are_taken_or_refused(
    said: list[bytes], data: st.DataObject, last: str
) -> None:
    whole = b"".join(said)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    when = data.draw(st.integers(0, len(cuts) + 1))  # the call comes among the pieces
    async with Stage(RpcConfig(stream_window=WINDOW)) as stage:
        puppet = stage.puppet
        puppet.greet()
        stream = puppet.open(m.Items(0, False))
        for index, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(whole)], strict=True)):
            if puppet.link.is_open and index == when:
                puppet.say(upload(0, "total"))
            if puppet.link.is_open:
                puppet.link.write(stream, whole[start:stop])
            await asyncio.sleep(0)
        if puppet.link.is_open:
            if when > len(cuts):
                puppet.say(upload(0, "total"))
            if last == "end":
                puppet.link.write(stream, b"", end=True)
            elif last == "reset":
                puppet.link.reset_stream(stream, 7)
        for _ in range(20):
            await asyncio.sleep(0)
        assert puppet.error is None or stage.b.counters["bad_frame"] == 1
        expected = _total(said) if last != "reset" else None
        if puppet.error is None and expected is not None and puppet.outcomes():
            assert await puppet.outcome() == expected
        echo = stage.stranger.client(stage.b.local, Bench, "bench").echo
        assert await echo(Buffer(b"still here")) == Buffer(b"still here")


def _total(said: list[bytes]) -> Any:
    """The sum of well-formed items that come with their end; None for anything else."""
    if not said or said[-1] != END or said.count(END) != 1:
        return None
    total = 0
    for piece in said[:-1]:
        try:
            message = msgspec.msgpack.decode(piece[4:], type=m.StreamFrame)
        except (msgspec.MsgspecError, ValueError):
            return None
        if frame(piece[4:]) != piece or isinstance(message, m.End | m.Broken):
            return None
        if isinstance(message, m.Item):
            value = msgspec.msgpack.decode(message.value)
            values = [value]
            if message.sizes:
                return None
        else:
            values = msgspec.msgpack.decode(message.items)
        if not all(type(value) is int for value in values):
            return None
        total += sum(values)
    return total
