"""Control goes first, data streams share what is left, and no byte is lost or moved."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.link.outbox import PIECE, Chunk, Outbox
from lattica.path.memory import Conditions, PacketNetwork
from lattica.virtual_loop import VirtualLoop
from tests.link.helpers import exchange, two

DATA = (2, 6, 10)
CONTROL = (0, 4)


class Engine:
    """Keeps what it is handed, by stream and in order."""

    def __init__(self) -> None:
        self.streams: dict[int, bytes] = {}
        self.ended: list[int] = []
        self.order: list[int] = []

    def send(self, stream_id: int, data: Chunk, end: bool) -> bool:
        assert stream_id not in self.ended, "bytes after the end"
        self.streams[stream_id] = self.streams.get(stream_id, b"") + bytes(data)
        self.order.append(stream_id)
        if end:
            self.ended.append(stream_id)
        return True


writes = st.lists(st.tuples(st.sampled_from(DATA + CONTROL), st.binary(max_size=50)), max_size=60)


@given(writes, st.sets(st.sampled_from(DATA + CONTROL)), st.lists(st.integers(1, 40), min_size=1))
def test_every_stream_arrives_whole_and_in_order(
    chunks: list[tuple[int, bytes]], ends: set[int], rooms: list[int]
) -> None:
    outbox, engine = Outbox(), Engine()
    wanted: dict[int, bytes] = {}
    for stream, chunk in chunks:
        outbox.write(stream, chunk, end=False)
        wanted[stream] = wanted.get(stream, b"") + chunk
    for stream in ends:
        outbox.write(stream, b"", end=True)
        wanted.setdefault(stream, b"")
    outbox.push_control(engine)
    turn = 0
    while outbox.has_data:
        room = rooms[turn % len(rooms)]
        assert outbox.push_data(engine, room) <= room
        turn += 1
    assert len(outbox) == 0
    assert {each: data for each, data in engine.streams.items() if data} == {
        each: data for each, data in wanted.items() if data
    }
    assert set(engine.ended) == ends
    assert len(engine.ended) == len(ends)


def test_streams_take_turns() -> None:
    outbox, engine = Outbox(), Engine()
    outbox.write(2, bytes(1000), end=True)
    outbox.write(6, bytes(10), end=True)
    outbox.push_data(engine, 100)
    outbox.push_data(engine, 100)
    assert engine.ended == [6], "a short stream does not wait for the end of a long one"
    assert len(outbox) == 1010 - 200


def test_bodies_of_one_size_end_one_after_another_and_nobody_is_forgotten() -> None:
    outbox, engine = Outbox(), Engine()
    outbox.write(2, bytes(10_000), end=False)  # one without an end in sight
    for stream in range(6, 30, 4):
        outbox.write(stream, bytes(1000), end=True)
    ended_after = []
    for pieces in range(1, 200):
        outbox.push_data(engine, 100)
        while len(ended_after) < len(engine.ended):
            ended_after.append(pieces)
        if len(engine.ended) == 6:
            break
    # If they shared, the first would end after five sixths of the time of all.
    assert ended_after[0] <= ended_after[-1] / 3
    assert len(engine.streams[2]) >= 100


def test_what_is_dropped_is_not_sent() -> None:
    outbox, engine = Outbox(), Engine()
    outbox.write(2, bytes(1000), end=True)
    outbox.write(6, b"kept", end=False)
    outbox.drop(2)
    assert len(outbox) == 4
    while outbox.has_data:
        outbox.push_data(engine)
    assert engine.streams == {6: b"kept"}


def test_a_chunk_is_not_copied_before_it_is_handed_over() -> None:
    outbox, engine = Outbox(), Engine()
    data = bytearray(b"before")
    outbox.write(2, memoryview(data), end=True)
    data[:] = b"after!"
    outbox.push_data(engine)
    assert engine.streams == {2: b"after!"}


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"loop_factory": VirtualLoop})])
async def test_control_does_not_wait_behind_a_saturating_stream() -> None:
    """16 MB queued on a path of 20 MB/s and 20 ms: an echo takes a round trip, not 0.8 s."""
    network = PacketNetwork(Conditions(latency=0.01, rate=20e6, queue=1_000_000))
    async with two(network) as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        theirs = bob.to(alice)
        bulk, control = (
            link.open_stream(unidirectional=True),
            link.open_stream(unidirectional=False),
        )
        size = 16 * 1024 * 1024
        link.write(bulk, bytes(size), end=True)
        loop = asyncio.get_running_loop()
        await theirs.until(lambda: len(theirs.data[bulk]) > 4 * PIECE)
        waits = []
        for n in range(1, 20):
            start = loop.time()
            link.write(control, b"x")
            await theirs.until(lambda n=n: len(theirs.data[control]) == n)  # type: ignore[misc]
            waits.append(loop.time() - start)
        assert len(theirs.data[bulk]) < size, "the stream was still busy"
        assert sorted(waits)[len(waits) // 2] < 0.08
        await theirs.until(lambda: bulk in theirs.ended, timeout=60)
        assert len(theirs.data[bulk]) == size


@pytest.mark.anyio
@pytest.mark.parametrize("by", ["the sender", "the receiver"])
async def test_streams_given_up_leave_nothing_in_the_way_of_others(by: str) -> None:
    async with two() as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        mine, theirs = alice.to(bob), bob.to(alice)
        for n in range(12):
            stream = link.open_stream(unidirectional=True)
            link.write(stream, bytes(4 * 1024 * 1024))
            await theirs.until(lambda s=stream: len(theirs.data[s]) > 0)  # type: ignore[misc]
            if by == "the sender":
                link.reset_stream(stream, 1)
                await theirs.until(lambda n=n: len(theirs.resets) == n + 1)  # type: ignore[misc]
            else:
                theirs.link.stop_stream(stream, 1)
                await mine.until(lambda n=n: len(mine.stops) == n + 1)  # type: ignore[misc]
        await exchange(link, theirs, bytes(300_000))
        assert link.statistics().unsent == 0


@pytest.mark.anyio
async def test_more_streams_than_may_be_open_at_once_all_arrive() -> None:
    """What waits for its stream to begin must not stop those that have begun from ending."""
    async with two() as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        theirs = bob.to(alice)
        streams = [link.open_stream(unidirectional=True) for _ in range(1500)]
        for stream in streams:
            link.write(stream, bytes(3000))
        await theirs.until(lambda: len(theirs.data) > 500)
        for stream in streams:
            link.write(stream, bytes(3000), end=True)
        await theirs.until(lambda: len(theirs.ended) == len(streams), timeout=40)
        assert all(len(theirs.data[stream]) == 6000 for stream in streams)
