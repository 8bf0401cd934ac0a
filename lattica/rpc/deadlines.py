"""Many deadlines behind one timer: adding and removing cost O(1)."""

from __future__ import annotations

import heapq
import math
from typing import Generic, TypeVar

K = TypeVar("K")


class Deadlines(Generic[K]):
    """Keys and when they are due. Never early, late by at most `tick` seconds."""

    def __init__(self, tick: float = 0.005) -> None:
        self._tick = tick
        self._slots: dict[int, dict[K, None]] = {}
        self._order: list[int] = []  # heap of the slots' numbers

    def add(self, key: K, when: float) -> int:
        """Remember `key`; the result is its slot, for `discard`. -1: never due."""
        if math.isinf(when):
            return -1
        slot = math.ceil(when / self._tick)
        keys = self._slots.get(slot)
        if keys is None:
            keys = self._slots[slot] = {}
            heapq.heappush(self._order, slot)
        keys[key] = None
        return slot

    def discard(self, slot: int, key: K) -> None:
        """Forget `key`."""
        keys = self._slots.get(slot)
        if keys is not None:
            keys.pop(key, None)

    def next(self) -> float | None:
        """When the earliest key is due."""
        while self._order and not self._slots[self._order[0]]:
            del self._slots[heapq.heappop(self._order)]
        return self._order[0] * self._tick if self._order else None

    def due(self, now: float) -> list[K]:
        """Remove and return the keys that are due."""
        keys: list[K] = []
        while self._order and self._order[0] * self._tick <= now:
            keys.extend(self._slots.pop(heapq.heappop(self._order)))
        return keys

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))
