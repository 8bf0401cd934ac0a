"""Which block is asked for next."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattica.config import KIB
from lattica.errors import StoreError
from lattica.store.blocks.manifest import BlockRef, FileEntry, Manifest
from lattica.store.blocks.sets import mask_of
from lattica.store.swarm.picking import Picker
from lattica.store.swarm.priorities import ranks_of
from tests.store.mesh import identity

ONE, TWO, THREE = (identity(number).peer_id for number in (1, 2, 3))
ALL = 0b1111


def lowest(_: int) -> int:
    """In place of chance."""
    return 0


def picker(wanted: int = ALL, **options: object) -> Picker:
    return Picker(wanted, 4, random=lowest, **options)  # type: ignore[arg-type]


def chosen(of: Picker, have: int = ALL) -> list[int]:
    """What a peer is asked for, one after the other."""
    return list(iter(partial(of.choose, ONE, have), None))


def test_each_block_is_asked_of_one_peer_and_only_if_it_has_it() -> None:
    one = picker(0b0111)
    assert one.choose(ONE, 0b1010) == 1
    assert one.choose(ONE, 0b1010) is None
    assert one.choose(TWO, ALL) == 0
    assert one.choose(THREE, ALL) == 2
    assert chosen(one) == []
    one.returned(2, THREE)
    assert one.choose(ONE, ALL) == 2


def test_the_rarest_come_first() -> None:
    one = picker()
    one.seen(0b0011)
    one.seen(0b0101)
    assert chosen(one) == [3, 1, 2, 0]
    one = picker()
    one.seen(0b0111)
    one.unseen(0b0011)
    assert chosen(one) == [0, 1, 3, 2]


def test_what_is_wanted_first_comes_before_what_is_rare() -> None:
    one = picker(ranks=[0b1000, 0b0010])
    one.seen(0b1010)
    assert chosen(one) == [3, 1, 0, 2]


def test_who_else_was_asked_is_told_when_a_block_is_here() -> None:
    one = picker()
    assert one.choose(ONE, 0b0001) == 0
    assert one.may_ask(0)
    one.ask(0, TWO)
    assert not one.may_ask(0)
    assert one.arrived(0) == [ONE, TWO]
    assert one.left == 0b1110
    one.returned(0, ONE)
    assert chosen(one) == [1, 2, 3], "what is here is not asked for again"


@given(st.lists(st.integers(0, 300), max_size=40))
def test_a_set_has_what_was_put_in(numbers: list[int]) -> None:
    mask = mask_of(numbers)
    assert {number for number in range(301) if mask >> number & 1} == set(numbers)


@given(
    haves=st.lists(st.integers(0, 2**20 - 1), min_size=1, max_size=6),
    steps=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=80),
)
@settings(max_examples=100, deadline=None)
def test_nothing_is_lost_or_asked_for_twice(
    haves: list[int], steps: list[tuple[int, bool]]
) -> None:
    count = 20
    one = Picker(2**count - 1, count)
    for have in haves:
        one.seen(have)
    asked: dict[int, int] = {}
    here = 0
    for step, is_given in steps:
        peer = step % len(haves)
        number = one.choose(identity(peer).peer_id, haves[peer])
        if number is not None:
            assert number not in asked
            assert haves[peer] >> number & 1
            assert not here >> number & 1
            asked[number] = peer
        if asked:
            done, by = asked.popitem()
            if is_given:
                one.arrived(done)
                here |= 1 << done
            one.returned(done, identity(by).peer_id)
    assert one.left == (2**count - 1) & ~here
    free = sum(haves[0] >> number & 1 for number in range(count) if number not in asked) - (
        (here & haves[0]).bit_count()
    )
    assert len(list(iter(partial(one.choose, ONE, haves[0]), None))) == free


def entry(path: str, first: int, count: int) -> FileEntry:
    refs = tuple(BlockRef(bytes([n]) * 32, KIB) for n in range(first, first + count))
    return FileEntry(path, count * KIB, refs)


def test_parts_of_files_are_the_blocks_that_they_touch() -> None:
    manifest = Manifest((entry("a", 0, 3), entry("b", 3, 2)))
    numbers = {bytes([n]) * 32: n for n in range(5)}
    ranks = partial(ranks_of, manifest, numbers)
    assert ranks(["b", ("a", KIB, 2 * KIB)]) == [0b11000, 0b00010]
    assert ranks([("a", KIB - 1, KIB + 1)]) == [0b00011]
    with pytest.raises(StoreError, match="no file c"):
        ranks(["c"])
