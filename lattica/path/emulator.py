"""What a network does to datagrams: delay, rate, queue, loss and worse. Sans-IO and seeded.

One `Direction` is the way from one address to another. It is told of each datagram and the
time, and says what arrives when. All times are seconds, all sizes bytes of datagrams
(no headers of lower layers are added).
"""

from __future__ import annotations

import random
from collections import Counter

import msgspec

_STEP = 1e-7  # seconds between arrivals in order: timers of equal times lose their order
_MAX_FLIPS = 8  # bits of a corrupted datagram


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What one direction does to datagrams. Chances are from 0 to 1, each datagram by itself."""

    latency: float = 0.0  # seconds, one way
    jitter: float = 0.0  # seconds: up to so much is added
    jitter_reorders: bool = False  # else a datagram waits for the ones before it
    rate: float | None = None  # bytes/s; None: any
    queue: int = 256 * 1024  # bytes that wait for the rate; what comes on top is dropped
    mtu: int = 1472  # bytes of a datagram, an Ethernet's; larger ones are dropped without a word
    loss: float = 0.0
    corrupt: float = 0.0  # one to eight bits flip
    duplicate: float = 0.0
    reorder: float = 0.0  # the datagram is late by up to `reorder_delay`, others overtake it
    reorder_delay: float = 0.005  # seconds


class Pipe:
    """A line of a certain rate with a drop-tail queue before it. May be shared."""

    def __init__(self, rate: float, queue: int) -> None:
        self.rate = rate  # bytes/s
        self.queue = queue  # bytes
        self._free_at = 0.0

    def backlog(self, now: float) -> float:
        """Bytes that wait or are being sent."""
        return max(0.0, self._free_at - now) * self.rate

    def change(self, rate: float, queue: int, now: float) -> None:
        """Another rate for what enters from now on; what waits still counts in bytes."""
        if rate != self.rate:
            self._free_at = now + self.backlog(now) / rate
            self.rate = rate
        self.queue = queue

    def enter(self, size: int, now: float) -> float | None:
        """When a datagram's last byte leaves the line; None if the queue has no room."""
        if self.backlog(now) + size > max(self.queue, size):
            return None
        self._free_at = max(self._free_at, now) + size / self.rate
        return self._free_at


class Direction:
    """The way from one address to another. Its own generator makes it independent of others."""

    def __init__(self, conditions: Conditions, seed: str) -> None:
        self.conditions = conditions
        self.counters: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._line = Pipe(1.0, 0)
        self._last_arrival = 0.0

    def backlog(self, now: float) -> float:
        """Bytes that wait for the rate."""
        return 0.0 if self.conditions.rate is None else self._line.backlog(now)

    def carry(self, datagram: bytes, now: float) -> list[tuple[float, bytes]]:
        """What becomes of a datagram sent at `now`: times of arrival and contents."""
        told, chance, count = self.conditions, self._random.random, self.counters
        count["sent"] += 1
        if len(datagram) > told.mtu:
            count["too_big"] += 1
            return []
        left: float | None = now
        if told.rate is not None:
            self._line.change(told.rate, told.queue, now)
            left = self._line.enter(len(datagram), now)
        if left is None:
            count["overflowed"] += 1
            return []
        if told.loss and chance() < told.loss:
            count["lost"] += 1
            return []
        if told.corrupt and chance() < told.corrupt:
            count["corrupted"] += 1
            datagram = self._flip(datagram)
        copies = 1
        if told.duplicate and chance() < told.duplicate:
            count["duplicated"] += 1
            copies = 2
        return [(self._arrival(left), datagram) for _ in range(copies)]

    def _arrival(self, left: float) -> float:
        told, chance = self.conditions, self._random.random
        at = left + told.latency + (told.jitter * chance() if told.jitter else 0.0)
        if told.reorder and chance() < told.reorder:
            self.counters["reordered"] += 1
            return at + told.reorder_delay * chance()
        if not (told.jitter and told.jitter_reorders):
            at = self._last_arrival = max(at, self._last_arrival + _STEP)
        return at

    def _flip(self, datagram: bytes) -> bytes:
        damaged = bytearray(datagram)
        bits = self._random.sample(range(8 * len(damaged)), self._random.randint(1, _MAX_FLIPS))
        for bit in bits:
            damaged[bit // 8] ^= 1 << bit % 8
        return bytes(damaged)
