"""Actors on a host: one process each, calls in order, restarts in place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lattica.actors.messages import Failure
from tests.actors.hosting import hosting

pytestmark = pytest.mark.anyio


class Counter:
    def __init__(self, start: int = 0) -> None:
        self.total = start

    def add(self, k: int = 1) -> int:
        self.total += k
        return self.total

    def pid(self) -> int:
        return os.getpid()


async def test_an_actor_keeps_its_state_in_its_own_process(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        one, two = await bench.create(Counter, 40), await bench.create(Counter)
        assert await one.call("add", 2) == 42
        assert await two.call("add", 1) == 1
        assert await one.call("pid") == one.pid != two.pid
