"""A peer that is cancelled while it starts leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from lattica.peer import Peer, PeerOptions

pytestmark = pytest.mark.anyio


async def start(options: PeerOptions, turns: int) -> bool:
    """Start a peer, and cancel that after so many turns of the loop; whether it was up before."""
    loop = asyncio.get_running_loop()
    is_up = False
    with anyio.CancelScope() as scope:

        def turn(left: int) -> None:
            if left == 0:
                scope.cancel()
            elif not is_up:
                loop.call_soon(turn, left - 1)

        loop.call_soon(turn, turns)
        async with Peer.open(options):
            is_up = True
    return is_up


def open_files() -> set[str]:
    """Sockets and files of this process."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue  # the listing's own
    return found


async def eventually(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not condition():
            await anyio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux")
async def test_cancelled_at_any_step_of_its_start_a_peer_keeps_no_task_and_no_file(
    tmp_path: Path,
) -> None:
    async with Peer.open(PeerOptions(home=tmp_path / "host", cpus=0, memory=0)) as host:
        ticket = host.invite().encode()
        options = PeerOptions(home=tmp_path / "guest", cpus=0, memory=0, ticket=ticket)
        assert await start(options, 10**6)  # what is loaded once is loaded now
        files, tasks = open_files(), len(asyncio.all_tasks())
        turns, is_up = 0, False
        while not is_up:
            with anyio.fail_after(15):
                is_up = await start(options, turns)  # the home's lock was given back, or it raises
            await eventually(lambda: not open_files() - files)
            await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
            turns += 7
        assert turns > 14
