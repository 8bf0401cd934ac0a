"""Credit: whatever is sent in whatever mix arrives whole, and nobody runs ahead of its window."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattica.config import KIB, RpcConfig
from lattica.rpc import Buffer
from lattica.rpc import messages as m
from tests.rpc.mesh import Mesh
from tests.rpc.puppet import Stage, call
from tests.rpc.services import Bench

pytestmark = pytest.mark.anyio

sizes = st.integers(0, 400_000)
jobs = st.lists(
    st.one_of(
        st.tuples(st.just("body"), sizes, st.just(0)),
        st.tuples(st.just("parts"), st.integers(0, 150_000), st.integers(0, 8)),
        st.tuples(st.just("count"), st.integers(0, 3000), st.just(0)),
        st.tuples(st.just("stopped"), st.integers(1, 90_000), st.integers(1, 5)),
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=40, deadline=None)
@given(
    jobs=jobs,
    window=st.sampled_from([64 * KIB, 100_000, 1024 * KIB]),
    places=st.sampled_from([8, 9, 32]),
)
async def test_no_mix_of_bodies_and_streams_ever_stops(
    jobs: list[tuple[str, int, int]], window: int, places: int
) -> None:
    config = RpcConfig(stream_window=window, max_streams_per_peer=places)
    async with Mesh(config) as mesh, asyncio.timeout(30):
        for rpc in (mesh.a, mesh.b):
            rpc.register("bench", Bench())
        stubs = [
            here.client(there.local, Bench, "bench")
            for here, there in ((mesh.a, mesh.b), (mesh.b, mesh.a))
        ]
        await stubs[0].add(1)
        streams = asyncio.Semaphore(places // 2)  # more are told to come back, rightly

        async def one(index: int, kind: str, size: int, count: int) -> None:
            stub = stubs[index % 2]
            if kind == "body":
                data = random.Random(index).randbytes(size)
                assert bytes((await stub.echo(Buffer(data))).data) == data
                return
            async with streams:
                if kind == "count":
                    assert [n async for n in stub.count(size)] == list(range(size))
                elif kind == "parts":
                    got = [bytes(part.data) async for part in stub.parts(count, size)]
                    assert got == [bytes([n]) * size for n in range(count)]
                else:
                    items = stub.parts(1_000_000, size)
                    for n in range(count):
                        assert bytes((await anext(items)).data) == bytes([n]) * size
                    await items.aclose()

        await asyncio.gather(*(one(index, *job) for index, job in enumerate(jobs)))
        for _ in range(50):
            await asyncio.sleep(0)
        for rpc in (mesh.a, mesh.b):
            assert rpc.counters["bad_frame"] == 0
            channel = next(iter(rpc._sessions.values())).channel
            assert not channel.sending._sources
            assert not channel.sending._bodies
            assert not channel.receiving._receiving
            assert not channel.sending._started_bytes


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 500_000),
    grants=st.lists(st.integers(1, m.INITIAL_CREDIT), min_size=1, max_size=30),
)
async def test_a_sender_uses_all_its_credit_and_never_more(size: int, grants: list[int]) -> None:
    """A receiver that grants by hand; the sender is told of a window of `INITIAL_CREDIT`."""
    async with Stage() as stage:
        puppet = stage.puppet
        puppet.say(m.Hello(m.VERSION, m.INITIAL_CREDIT, 100))
        puppet.say(call(0, "parts", [1, size]))
        limit, stream = m.INITIAL_CREDIT, None
        for step in (0, *grants):
            limit += step
            if stream is not None:
                puppet.say(m.Credit(stream, limit))
            for _ in range(6):
                await asyncio.sleep(0)
            stream = next(iter(puppet.data))
            header = 4 + puppet.data[stream][3]  # its own frame is not part of the credit
            arrived = len(puppet.data[stream]) - header
            assert arrived <= limit
            whole = stream not in next(iter(stage.b._sessions.values())).channel.sending._sources
            assert whole or arrived == limit
            if whole:
                break
            limit = arrived
