"""Frames survive any chunking; bad lengths are refused before anything is kept."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import FrameError
from lattica.rpc.framing import Batch, FrameReader, frame

payloads = st.lists(st.binary(min_size=1, max_size=64), max_size=20)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[a:b] for a, b in pairwise(places)]


@given(payloads, st.lists(st.integers(0, 10_000), max_size=30))
def test_any_chunking_gives_the_same_frames(frames: list[bytes], at: list[int]) -> None:
    reader = FrameReader(64)
    got: list[bytes] = []
    for chunk in cut(b"".join(map(frame, frames)), at):
        got += reader.feed(chunk)
    assert got == frames
    assert reader.pending == 0


@given(payloads, st.binary(max_size=40), st.lists(st.integers(0, 10_000), max_size=30))
def test_the_first_frame_and_the_rest(frames: list[bytes], tail: bytes, at: list[int]) -> None:
    reader = FrameReader(64)
    if not frames:
        return
    first, rest = None, b""
    for chunk in cut(frame(frames[0]) + tail, at):
        if first is None:
            done = reader.feed_one(chunk)
            if done is not None:
                first, rest = done
        else:
            rest += chunk
    assert (first, rest) == (frames[0], tail)


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_random_bytes_are_frames_or_an_error_and_little_is_kept(chunks: list[bytes]) -> None:
    reader = FrameReader(32)
    try:
        for chunk in chunks:
            assert all(1 <= len(got) <= 32 for got in reader.feed(chunk))
            assert reader.pending < 32 + 4
    except FrameError:
        pass


@pytest.mark.parametrize("size", [0, 65, 2**31, 2**32 - 1])
def test_a_bad_length_is_refused_before_its_bytes_come(size: int) -> None:
    with pytest.raises(FrameError, match="1 to 64"):
        FrameReader(64).feed(size.to_bytes(4, "big"))
    with pytest.raises(FrameError, match="1 to 64"):
        FrameReader(64).feed_one(size.to_bytes(4, "big"))


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=200), st.integers(10, 300))
def test_a_batch_becomes_frames_that_decode_to_its_messages(
    numbers: list[int], target: int
) -> None:
    batch, encoder = Batch(target), msgspec.msgpack.Encoder()
    for number in numbers:
        encoder.encode_into([number], batch.buffer, -1)
        batch.added()
    size = len(batch)
    data = bytes(batch.take())
    frames = FrameReader(target + 32).feed(data)
    assert [n for each in frames for (n,) in msgspec.msgpack.decode(each)] == numbers
    assert 0 <= len(data) - size <= 9
    assert len(batch) == 0
    assert batch.take() == b""
