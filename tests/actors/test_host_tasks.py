"""Tasks on a host: real processes, real code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lattica.actors.messages import Failure
from tests.actors.hosting import hosting

pytestmark = pytest.mark.anyio


def add(a: int, b: int) -> int:
    return a + b


async def test_a_task_runs_in_another_process(tmp_path: Path) -> None:
    async with hosting(tmp_path) as bench:
        assert await bench.run(add, 2, 3) == 5
        pid = await bench.run(os.getpid)
        assert pid not in (os.getpid(), bench.host.forkserver_pid)
