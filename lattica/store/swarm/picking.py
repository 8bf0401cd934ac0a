"""Which block to ask a peer for: the rarest of those that were asked of nobody. Sans-IO.

Sets of blocks are integers, a bit for each block, so that a choice among a million of them
takes microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import randrange

from lattica.identity.keys import PeerId

MAX_ASKED = 2  # of so many peers at a time, where the first lets us wait


class Picker:
    """The blocks of one fetch."""

    def __init__(
        self,
        wanted: int,
        count: int,
        *,
        ranks: Sequence[int] = (),
        random: Callable[[int], int] = randrange,
    ) -> None:
        """`wanted` of `count`. `ranks`: blocks to be had before all others, the first set first.

        Among equals it is `random`: peers that fetch the same soon have something to give
        to each other.
        """
        self.left = wanted  # not here yet
        self._free = wanted  # and asked of nobody
        self._count = count
        self._ranks = (*ranks, (1 << count) - 1)
        self._levels = [wanted]  # by how many of the peers that lack something have them
        self._asked: dict[int, list[PeerId]] = {}
        self._random = random

    def seen(self, blocks: int) -> None:
        """A peer that lacks something has these blocks."""
        self._levels.append(0)
        for level in range(len(self._levels) - 2, -1, -1):
            moved = self._levels[level] & blocks
            self._levels[level] ^= moved
            self._levels[level + 1] |= moved
        if not self._levels[-1]:
            self._levels.pop()

    def unseen(self, blocks: int) -> None:
        """A peer that had these blocks is gone."""
        for level in range(1, len(self._levels)):
            moved = self._levels[level] & blocks
            self._levels[level] ^= moved
            self._levels[level - 1] |= moved

    def choose(self, peer: PeerId, have: int) -> int | None:
        """The next block to ask of a peer that has these; None if all of them were asked for."""
        found = self._best(have & self._free)
        if found is not None:
            self.ask(found, peer)
        return found

    def ask(self, number: int, peer: PeerId) -> None:
        """A peer is asked for a block, whoever else was."""
        self._asked.setdefault(number, []).append(peer)
        self._free &= ~(1 << number)

    def may_ask(self, number: int) -> bool:
        """Whether one more peer may be asked for a block."""
        return len(self._asked.get(number, ())) < MAX_ASKED

    def _best(self, blocks: int) -> int | None:
        if not blocks:
            return None
        blocks = next(blocks & rank for rank in self._ranks if blocks & rank)
        blocks = next(blocks & level for level in self._levels if blocks & level)
        start = self._random(self._count)
        beyond = blocks >> start << start
        return _lowest(beyond or blocks)

    def returned(self, number: int, peer: PeerId) -> None:
        """A peer will not give a block that it was asked for."""
        peers = self._asked.get(number, [])
        if peer in peers:
            peers.remove(peer)
            if not peers:
                del self._asked[number]
                self._free |= self.left & (1 << number)

    def arrived(self, number: int) -> list[PeerId]:
        """A block is here; those who were asked for it."""
        bit = 1 << number
        self.left &= ~bit
        self._free &= ~bit
        for level in range(len(self._levels)):
            self._levels[level] &= ~bit
        return self._asked.pop(number, [])


def _lowest(blocks: int) -> int:
    return (blocks & -blocks).bit_length() - 1
