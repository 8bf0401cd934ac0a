"""Waiting for slots: some or all of them, for so long."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lattica.actors.objects import Slot


async def wait_ready(slots: Sequence[Slot], count: int, timeout: float | None) -> bool:
    """Wait until `count` of the slots are ready; False if `timeout` seconds passed first."""
    missing = count - sum(slot.outcome is not None for slot in slots)
    if missing <= 0:
        return True
    if timeout is not None and timeout <= 0:
        return False
    done = asyncio.Event()

    def arrived() -> None:
        nonlocal missing
        missing -= 1
        if missing <= 0:
            done.set()

    undo = [slot.when_ready(arrived) for slot in slots if slot.outcome is None]
    try:
        # Without a timeout this waits as long as the user asked it to.
        async with asyncio.timeout(timeout):
            await done.wait()
    except TimeoutError:
        return False
    finally:
        for each in undo:
            each()
    return True
