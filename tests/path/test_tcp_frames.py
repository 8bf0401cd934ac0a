"""Frames of a TCP connection: the same datagrams however the stream is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.path.tcp_frames import (
    MAX_FIRST,
    MAX_FRAME,
    PREFIX,
    FrameError,
    FrameReader,
    FrameWriter,
)

DATAGRAMS = st.lists(st.binary(min_size=1, max_size=300), max_size=40)


def written(writer: FrameWriter, steps: list[int]) -> bytes:
    """What leaves when the socket takes so many bytes at a time."""
    stream = b""
    index = 0
    while writer.size:
        offered = b"".join(writer.parts())
        assert offered
        step = max(1, steps[index % len(steps)]) if steps else len(offered)
        index += 1
        stream += offered[:step]
        writer.sent(min(step, len(offered)))
    return stream


@given(DATAGRAMS, st.lists(st.integers(1, 700), max_size=20), st.lists(st.integers(1, 700)))
def test_any_chunking_gives_the_same_datagrams(
    datagrams: list[bytes], steps: list[int], cuts: list[int]
) -> None:
    writer, reader = FrameWriter(1 << 20), FrameReader()
    assert writer.add(datagrams) == 0
    stream = written(writer, steps)
    received: list[bytes] = []
    for cut in [*cuts, len(stream)]:
        received += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert received == datagrams
    assert reader.held == 0


def test_a_long_queue_leaves_in_bounded_pieces() -> None:
    writer, reader = FrameWriter(64 << 20), FrameReader()
    large, small = [bytes((index,)) * MAX_FRAME for index in range(200)], [b"x"] * 3000
    large[0] = large[0][:MAX_FIRST]
    assert writer.add([*large, *small]) == 0
    received: list[bytes] = []
    while writer.size:
        parts = writer.parts()
        assert len(parts) <= 1024
        piece = b"".join(parts)
        assert len(piece) < 1024 * 1024 + MAX_FRAME
        received += reader.feed(piece)
        writer.sent(len(piece))
    assert received == [*large, *small]


def test_a_full_queue_drops_the_newest() -> None:
    writer, reader = FrameWriter(50), FrameReader()
    assert writer.add([b"a" * 20, b"b" * 20, b"c" * 20, b"d"]) == 1
    assert reader.feed(written(writer, [])) == [b"a" * 20, b"b" * 20, b"d"]


def test_what_does_not_fit_a_frame_is_dropped() -> None:
    writer = FrameWriter(1 << 20)
    assert writer.add([b"", bytes(MAX_FRAME + 1), bytes(MAX_FRAME)]) == 2
    assert writer.size == PREFIX + MAX_FRAME


@pytest.mark.parametrize("length", [0, MAX_FIRST + 1, MAX_FRAME + 1, 65_535])
def test_empty_and_huge_frames_are_refused_before_they_are_there(length: int) -> None:
    with pytest.raises(FrameError):
        FrameReader().feed(length.to_bytes(2, "big"))


@pytest.mark.parametrize("length", [0, MAX_FRAME + 1, 65_535])
def test_later_frames_may_be_larger_than_the_first(length: int) -> None:
    reader = FrameReader()
    large = bytes(MAX_FRAME)
    first, second = b"\x00\x01x", MAX_FRAME.to_bytes(2, "big") + large
    assert reader.feed(first + second) == [b"x", large]
    with pytest.raises(FrameError):
        reader.feed(length.to_bytes(2, "big"))


@given(st.lists(st.binary(max_size=3000), max_size=10))
def test_random_bytes_never_hold_more_than_a_frame(chunks: list[bytes]) -> None:
    reader = FrameReader()
    try:
        for chunk in chunks:
            reader.feed(chunk)
            assert reader.held < PREFIX + MAX_FRAME
    except FrameError:
        pass
