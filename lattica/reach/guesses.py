"""Which ports to try at a host whose translator gives each remote another one. No I/O."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

from lattica.reach.allocation import BLOCK, HIGHEST, LOWEST, PORTS, following
from lattica.reach.report import NatReport, Ports

AHEAD = 200  # ports that a sequential allocator may be further than last seen


def guesses(report: NatReport, seed: int) -> Iterator[int]:
    """All ports from 1024 to 65535, each once, the likely ones first.

    Of a sequential allocator the next ones; of a block all that may share one with the
    ports seen, the nearest first; then the rest in an order that depends on `seed` only.
    """
    given: set[int] = set()
    for port in _likely(report):
        if port not in given:
            given.add(port)
            yield port
    for port in _shuffled(random.Random(seed)):
        if port not in given:
            yield port


def steps(report: NatReport, stride: int) -> Iterator[int]:
    """Every `stride`th port ahead of a sequential allocator's last, for two that meet."""
    for distance in range(1, PORTS + 1, stride):
        yield following(report.latest, distance)


def _likely(report: NatReport) -> Iterator[int]:
    latest = report.latest
    if report.ports is Ports.BLOCK and report.low:
        yield from _near(report.low, report.high)
    elif report.ports is Ports.SEQUENTIAL and latest >= LOWEST:
        for distance in range(1, AHEAD + 1):
            yield following(latest, distance)
        # Two ports of a block can look like a sequence.
        yield from _near(latest, latest)
    elif report.ports is Ports.PRESERVED and latest >= LOWEST:
        yield latest
        yield from islice(steps(report, 1), AHEAD)


def _near(low: int, high: int) -> Iterator[int]:
    """The ports between, then below and above in turn, as far as a block may reach."""
    low, high = (min(max(port, LOWEST), HIGHEST) for port in (low, high))
    if high - low >= BLOCK:
        high = low + BLOCK - 1
    yield from range(low, high + 1)
    for distance in range(1, BLOCK):
        if high - (low - distance) < BLOCK and low - distance >= LOWEST:
            yield low - distance
        if high + distance - low < BLOCK and high + distance <= HIGHEST:
            yield high + distance


def _shuffled(order: random.Random) -> Iterator[int]:
    """A permutation made as it is used: Fisher and Yates', keeping only what has moved."""
    moved: dict[int, int] = {}
    for left in range(PORTS, 0, -1):
        pick = order.randrange(left)
        chosen = moved.get(pick, pick)
        last = moved.pop(left - 1, left - 1)
        if pick != left - 1:
            moved[pick] = last
        yield LOWEST + chosen
