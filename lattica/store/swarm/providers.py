"""Whom a fetch may ask for blocks, and why it asks some no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from lattica.errors import BlockCorruptError, BlockMissingError, LatticaError, StoreError
from lattica.identity.keys import PeerId

MAX_STALLS = 3  # deadlines a provider may miss, with nothing given between them


class Providers:
    """Whom to ask, and what became of it."""

    def __init__(self, banned: set[PeerId], counters: Counter[str]) -> None:
        """`banned` outlives the fetch: who sent wrong bytes once is not asked again."""
        self._banned = banned
        self._counters = counters
        self.problems: dict[PeerId, str] = {}  # those that are of no more use
        self._stalls: Counter[PeerId] = Counter()
        self._set_aside: dict[PeerId, str] = {}  # those that stalled in this round

    def usable(self, peers: Iterable[PeerId]) -> list[PeerId]:
        """Those worth asking that were not asked before."""
        fresh = []
        for peer in dict.fromkeys(peers):
            if peer in self._banned:
                self.problems.setdefault(peer, "sent wrong bytes before")
            elif peer not in self.problems:
                fresh.append(peer)
        return fresh

    def is_lost(self, peer: PeerId) -> bool:
        """Whether the provider is of no more use in this round."""
        return peer in self.problems or peer in self._set_aside

    def stalled(self, peer: PeerId, error: LatticaError) -> None:
        """It missed a deadline: set aside until nobody better is left.

        Asked for several blocks at once, a narrow link brings none of them in time, yet each
        of them alone. All that were under way count as one stall.
        """
        if self.is_lost(peer):
            return
        self._counters["provider_stalled"] += 1
        self._stalls[peer] += 1
        if self._stalls[peer] >= MAX_STALLS:
            self.failed(peer, error)
        else:
            self._set_aside[peer] = str(error)

    def gave(self, peer: PeerId) -> None:
        """It answered in time."""
        if self._stalls[peer]:
            self._stalls[peer] = 1  # it stays one that is asked with patience

    def has_stalled(self, peer: PeerId) -> bool:
        """Whether it is to be asked for one block at a time."""
        return self._stalls[peer] > 0

    def patience(self, peer: PeerId) -> int:
        """How many times the usual timeout it is given: doubled by each stall."""
        return 1 << self._stalls[peer]

    def second_chance(self) -> list[PeerId]:
        """Those set aside; from now on they are no longer."""
        peers = [peer for peer in self._set_aside if peer not in self.problems]
        self._set_aside.clear()
        return peers

    def failed(self, peer: PeerId, error: LatticaError) -> None:
        """It did not answer as a provider should."""
        self._counters["provider_failed"] += 1
        self.problems.setdefault(peer, str(error) or type(error).__name__)

    def lied(self, peer: PeerId) -> None:
        """It sent bytes that are not the block's."""
        self._banned.add(peer)
        self._counters["corrupt"] += 1
        self.problems[peer] = "sent wrong bytes"

    def error(self, what: str) -> StoreError:
        """Why `what` could not be had."""
        tried = "; ".join(f"{peer.short}: {text}" for peer, text in self.problems.items())
        if any(peer in self._banned for peer in self.problems):
            return BlockCorruptError(f"nobody gave the right bytes of {what}; tried {tried}")
        return BlockMissingError(f"no provider has {what}; tried {tried or 'none: no provider'}")
