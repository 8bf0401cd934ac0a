"""Deadlines are kept, whatever order they come in, and cost nothing when nobody is late."""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from lattica.rpc.sweep import TICK, Sweep
from lattica.virtual_loop import VirtualLoop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Held:
    """Deadlines in a list, as an owner of a sweep keeps them."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.waiting: list[float] = []
        self.late: list[float] = []
        self.looks = 0
        self.sweep = Sweep(self.expire)

    def add(self, deadline: float) -> None:
        self.waiting.append(deadline)
        if deadline < self.sweep.armed:
            self.sweep.arm(deadline)

    def expire(self, now: float) -> float:
        self.looks += 1
        self.late += [now - each for each in self.waiting if each <= now]
        self.waiting = [each for each in self.waiting if each > now]
        return min(self.waiting, default=math.inf)


async def test_each_deadline_is_noticed_within_a_tick() -> None:
    held = Held()
    chance = random.Random(7)
    for _ in range(1000):
        held.add(held.loop.time() + 10 * chance.random())
    await asyncio.sleep(11)
    assert len(held.late) == 1000
    assert all(0 <= late < TICK + 1e-3 for late in held.late)


async def test_calls_that_end_in_time_cost_one_look() -> None:
    held = Held()
    for _ in range(1000):
        held.add(held.loop.time() + 30)
        held.waiting.clear()
        await asyncio.sleep(0.001)
    assert held.looks == 0
    await asyncio.sleep(40)
    assert held.looks == 1
    assert held.sweep.armed == math.inf


async def test_an_earlier_deadline_moves_the_sweep_forward() -> None:
    held = Held()
    held.add(held.loop.time() + 30)
    held.add(held.loop.time() + 1)
    await asyncio.sleep(2)
    assert len(held.late) == 1
    assert len(held.waiting) == 1


async def test_a_closed_sweep_takes_no_more() -> None:
    held = Held()
    held.add(held.loop.time() + 1)
    held.sweep.close()
    held.add(held.loop.time() + 1)
    await asyncio.sleep(5)
    assert held.looks == 0
