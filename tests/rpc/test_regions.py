"""Memory for what arrives: handed out uncopied, used again when nobody sees it any more."""

from __future__ import annotations

import gc

import pytest

from lattica.config import MIB
from lattica.rpc.regions import MAPPED, Mappings, Region


@pytest.mark.parametrize("size", [5, MAPPED - 1, MAPPED, MAPPED + 1])
def test_what_is_written_is_what_is_seen(size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    region = Region(size)
    while region.missing:
        region.write(data[region.filled : min(size, region.filled + 100_000)])
    first, second = region.views([3, size - 3])
    assert bytes(first) == data[:3]
    assert bytes(second) == data[3:size]


def test_memory_is_used_again_once_no_view_of_it_is_left() -> None:
    mappings = Mappings()
    view = mappings.view(MIB)
    view[:] = b"x" * MIB
    part = view[5:6]
    del view
    gc.collect()
    assert mappings.kept == 0, "a part of it is seen"
    other = mappings.view(MIB)
    other[5:6] = b"y"
    assert bytes(part) == b"x"
    del part
    assert mappings.kept == MIB
    again = mappings.view(MIB - 10)
    assert mappings.kept == 0
    assert bytes(again[:1]) == b"x"
    assert len(again) == MIB - 10


def test_no_more_is_kept_than_may_be() -> None:
    mappings = Mappings(limit=2 * MIB)
    views = [mappings.view(MIB) for _ in range(4)]
    del views
    assert mappings.kept == 2 * MIB
    large = mappings.view(3 * MIB)
    assert len(large) == 3 * MIB
    del large
    assert mappings.kept == 0
