from __future__ import annotations

import asyncio
import os
from pathlib import Path

import anyio
import pytest

import lattica
from tests.actors.mesh import mesh_of

pytestmark = pytest.mark.anyio


@lattica.remote
def square(x: int) -> int:
    return x * x


async def test_tasks_of_a_burst_return_in_order(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a") as mesh:
        with mesh["a"].driver(), anyio.fail_after(30):
            assert await asyncio.gather(*[square.remote(i) for i in range(8)]) == [
                i * i for i in range(8)
            ]
