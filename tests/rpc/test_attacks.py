"""What a malicious peer may try to make us hold, or to keep us busy with."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from lattica.config import KIB, MIB, RpcConfig
from lattica.errors import CallLostError, LatticaError, RemoteError
from lattica.link.memory import MemoryLink
from lattica.rpc import Buffer, method
from lattica.rpc import messages as m
from lattica.rpc import serving as serving_module
from lattica.rpc.framing import FrameReader, frame
from tests.rpc.mesh import Mesh, until
from tests.rpc.puppet import Stage, call, item
from tests.rpc.services import Bench

pytestmark = pytest.mark.anyio
WINDOW = 64 * KIB


def test_a_frame_that_comes_byte_by_byte_costs_no_more_than_its_length() -> None:
    payload = bytes(256 * KIB - 4)
    reader, data, got = FrameReader(256 * KIB), frame(payload), list[bytes]()
    began = time.process_time()
    for at in range(0, len(data), 2):
        got += reader.feed(data[at : at + 2])
    assert got == [payload]
    assert time.process_time() - began < 1.5


async def test_very_many_small_items_in_one_piece_cost_no_more_than_their_length() -> None:
    async with Stage(RpcConfig(stream_window=MIB)) as stage:
        puppet = stage.puppet
        puppet.greet()
        got = 0

        async def read() -> None:
            nonlocal got
            async for _ in stage.b.client(stage.a.local, Bench, "bench").count(1):
                got += 1

        task = asyncio.create_task(read())
        await until(lambda: any(isinstance(one, m.Call) for one in puppet.heard))
        one = item(1)
        count = (MIB - 100) // len(one)
        stream = puppet.open(m.Items(0))
        began = time.process_time()
        puppet.link.write(stream, one * count)  # as QUIC hands it on once a gap is filled
        puppet.link.write(stream, frame(msgspec.msgpack.encode(m.End())), end=True)
        await task
        assert got == count
        assert time.process_time() - began < 10  # with the reader's own part


async def test_a_body_taken_before_it_was_sent_closes_the_link() -> None:
    async with Stage(RpcConfig(stream_window=WINDOW)) as stage:
        stage.puppet.greet()
        stage.puppet.say(call(0, "parts", [1_000_000, 1000]))
        await until(lambda: bool(stage.puppet.data))
        stage.puppet.say(m.Taken(next(iter(stage.puppet.data))))
        await stage.refused(says="cannot be taken")


async def test_results_that_are_not_taken_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_module, "MEMBER_RESULTS", MIB)
    async with Stage(RpcConfig(stream_window=WINDOW, max_streams_per_peer=4)) as stage:
        puppet = stage.puppet
        puppet.greet()
        for i in range(100):
            puppet.say(call(i, "text", [200_000]))
            await asyncio.sleep(0)
        await until(lambda: len(puppet.outcomes()) == 100)
        busy = [one for one in puppet.outcomes() if isinstance(one, m.Failure)]
        assert len(busy) > 80
        assert all("BusyError" in one.type_name for one in busy)
        session = next(iter(stage.b._sessions.values()))
        assert sum(body.nbytes for body in session.channel.sending._bodies) < 3 * MIB


@pytest.mark.parametrize("timeout", [1.7e308, float("inf"), 1e-300])
async def test_deadlines_of_any_size(timeout: float) -> None:
    async with Stage() as stage:
        stage.puppet.greet()
        raw = msgspec.Raw(msgspec.msgpack.encode([1, 1]))
        stage.puppet.say(m.Call(0, "bench", "add", timeout, raw), call(1))
        await until(lambda: len(stage.puppet.outcomes()) >= 1)
        assert stage.b.counters["bad_frame"] == 0
        assert stage.puppet.error is None


async def test_a_call_with_a_body_on_a_link_that_has_just_been_closed() -> None:
    """In the turn of the loop in which a link closes, before anybody has been told."""
    async with Mesh() as mesh:
        mesh.b.register("bench", Bench())
        stub = mesh.a.client(mesh.b.local, Bench, "bench")
        await stub.add(1)
        session = next(iter(mesh.a._sessions.values()))
        link = mesh.a.links.find(mesh.b.local)
        assert isinstance(link, MemoryLink)
        waiting = asyncio.create_task(stub.echo(Buffer(bytes(100_000))))
        # As a QUIC link does: no stream can be opened from now on.
        link.open_stream = _closed  # type: ignore[method-assign]
        link.write = _closed  # type: ignore[method-assign]
        with pytest.raises(CallLostError) as caught:
            await waiting
        assert not caught.value.may_have_run
        assert len(session.calls) == 0


def _closed(*args: object, **kwargs: object) -> int:
    from lattica.errors import LinkLostError

    raise LinkLostError("the link is closed")


class TerribleError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


class NamelessError(Exception):
    __module__ = 7  # type: ignore[assignment]


class Rude:
    """Handlers that raise what makes trouble to those who tell of it."""

    @method()
    async def throw(self, kind: str) -> int:
        if kind == "terrible":
            raise TerribleError
        if kind == "nameless":
            raise NamelessError("x")
        if kind == "surrogates":
            raise ValueError("\ud800")
        if kind == "group":
            raise BaseExceptionGroup("many", [TerribleError(), SystemExit(1)])
        if kind == "noted":
            error = ValueError("noted")
            error.__notes__ = 7  # type: ignore[assignment]
            raise error
        if kind == "deep":
            error = ValueError("0")
            for number in range(3000):
                following = ValueError(str(number))
                following.__cause__ = error
                error = following
            raise error
        if kind == "huge":
            raise ValueError("x" * 50_000_000)
        if kind == "exit":
            raise GeneratorExit
        if kind == "stop":
            raise StopAsyncIteration
        return 1


KINDS = ["terrible", "nameless", "surrogates", "group", "noted", "deep", "huge", "exit", "stop"]


@pytest.mark.parametrize("kind", KINDS)
async def test_whatever_a_handler_raises_is_one_outcome_and_harms_no_other(kind: str) -> None:
    async with Mesh() as mesh:
        mesh.b.register("rude", Rude())
        mesh.b.register("bench", Bench())
        beside = asyncio.create_task(mesh.a.client(mesh.b.local, Bench, "bench").hang())
        stub = mesh.a.client(mesh.b.local, Rude, "rude", timeout=5.0)
        with pytest.raises((RemoteError, LatticaError)) as caught:
            await stub.throw(kind)
        assert not isinstance(caught.value, TimeoutError)
        assert await stub.throw("nothing") == 1
        assert not beside.done()
        beside.cancel()
        assert len(next(iter(mesh.b._sessions.values())).serving) <= 1
