"""Frames between host and worker, cut at any byte."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.actors import pipe_messages as pm
from lattica.actors.messages import ObjectId, Value
from lattica.actors.pipe import FrameDecoder, FrameEncoder
from lattica.errors import FrameError
from lattica.identity.keys import Identity
from lattica.rpc.buffers import Buffer

LIMIT = 1 << 24
PEER = Identity(b"p" * 32).peer_id


def feed(decoder: FrameDecoder[Any], data: bytes, step: int = 1 << 30) -> list[Any]:
    """Give `data` to a decoder, at most `step` bytes at a time."""
    messages = []
    while data:
        room = decoder.get_buffer()
        count = min(len(room), len(data), step)
        room[:count] = data[:count]
        data = data[count:]
        messages += decoder.received(count)
    return messages


def frame(message: Any) -> bytes:
    return b"".join(FrameEncoder(LIMIT).encode(message))


_buffers = st.integers(0, 400_000).map(lambda size: Buffer(bytes([size % 251]) * size))
_values = st.builds(Value, _buffers, st.lists(_buffers, max_size=3).map(tuple))
_messages = st.one_of(
    st.builds(pm.Put, st.integers(0, 2**40), st.just(ObjectId(PEER, b"k")), _values),
    st.builds(pm.Done, st.integers(0, 9), st.lists(_values, max_size=2).map(tuple)),
    st.just(pm.Ready()),
    st.builds(pm.Leaving, st.text(max_size=20)),
)


@given(st.lists(_messages, max_size=6), st.integers(1, 300_000))
def test_messages_come_out_as_they_went_in(messages: list[Any], step: int) -> None:
    data = b"".join(map(frame, messages))
    if len(data) > 20_000:
        step = max(step, 1000)
    decoder: FrameDecoder[Any] = FrameDecoder(pm.ToHost, LIMIT)
    assert feed(decoder, data, step) == messages


def test_large_buffers_are_aligned_and_read_only() -> None:
    message = pm.Item(1, Value(Buffer(b"p" * 5001), (Buffer(b"a" * 70_001), Buffer(b"b" * 9_999))))
    decoder: FrameDecoder[Any] = FrameDecoder(pm.ToHost, LIMIT)
    for data in (frame(message), frame(pm.Item(1, Value(Buffer(b"x" * 600_000), ())))):
        [received] = feed(decoder, data)
        assert isinstance(received.outcome, Value)
        for buffer in (received.outcome.pickle, *received.outcome.buffers):
            assert buffer.data.readonly


def test_a_message_above_the_limit_is_not_encoded() -> None:
    encoder = FrameEncoder(10_000)
    large = pm.Item(1, Value(Buffer(b"x" * 20_000)))
    with pytest.raises(FrameError, match="larger than 10000"):
        encoder.encode(large)
    assert encoder.encode(pm.End(1)), "an encoder is as good as new after a refusal"


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<II", 2**32 - 1, 0),
        struct.pack("<II", 1, 2**32 - 1),
        struct.pack("<IIQ", 1, 1, 2**62),
        struct.pack("<IIQQ", 1, 2, 2**63, 2**63),
        struct.pack("<II", 1, 0) + b"\xc1",
        struct.pack("<II", 0, 0),
        frame(pm.Stop(1)),
        struct.pack("<II", 2, 0) + b"\x91\xc0",
        frame(pm.Ready())[:-1] + b"\x00",
        # A buffer that the frame does not hold.
        struct.pack("<II", 9, 0) + b"\x93\xa4Item\x01\x93\xa5",
    ],
)
def test_what_is_no_frame_is_a_frame_error(data: bytes) -> None:
    decoder: FrameDecoder[Any] = FrameDecoder(pm.ToHost, LIMIT)
    with pytest.raises(FrameError):
        feed(decoder, data)


@given(st.binary(max_size=400))
def test_noise_never_raises_anything_else(data: bytes) -> None:
    decoder: FrameDecoder[Any] = FrameDecoder(pm.ToHost, LIMIT)
    try:
        feed(decoder, data)
    except FrameError:
        return


@given(st.data())
def test_a_flipped_byte_never_raises_anything_else(data: st.DataObject) -> None:
    good = bytearray(frame(pm.Put(7, ObjectId(PEER, b"k"), Value(Buffer(b"x" * 9000)))))
    at = data.draw(st.integers(0, min(len(good) - 1, 200)))
    good[at] ^= data.draw(st.integers(1, 255))
    decoder: FrameDecoder[Any] = FrameDecoder(pm.ToHost, LIMIT)
    try:
        feed(decoder, bytes(good))
    except FrameError:
        return


def test_an_announcement_takes_no_memory() -> None:
    import psutil

    before = psutil.Process().memory_info().rss
    decoder: FrameDecoder[Any] = FrameDecoder(pm.ToHost, 1 << 32)
    feed(decoder, struct.pack("<IIQ", 1, 1, 1 << 31) + b"\x90")
    assert psutil.Process().memory_info().rss - before < 50_000_000
