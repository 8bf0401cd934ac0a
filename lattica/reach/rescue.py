"""Ways through relays for links whose own have all died."""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio

from lattica.config import ReachConfig
from lattica.errors import AddressError
from lattica.reach.care import Care
from lattica.reach.detours import Detours

log = logging.getLogger("lattica.reach")


class Rescue:
    """Opens sessions at the relays that the other end of a link has named."""

    def __init__(self, detours: Detours, config: ReachConfig, *, now: Callable[[], float]) -> None:
        self._detours = detours
        self._config = config
        self._now = now

    async def run(self, care: Care) -> None:
        """Ask the other end's relays for a way, at once; nothing if that is under way."""
        if care.theirs is None or care.is_rescuing:
            return
        care.is_rescuing = True
        try:
            async with anyio.create_task_group() as tasks:
                for address in care.theirs.relays[: self._config.relays]:
                    tasks.start_soon(self._detour, care, address)
        finally:
            care.is_rescuing = False

    async def _detour(self, care: Care, address: str) -> None:
        link, steering = care.link, care.link.steering
        assert steering is not None
        try:
            with anyio.fail_after(self._config.call_timeout):
                virtual = await self._detours.open(
                    link.remote.peer, address, lambda error: log.info("%s: %s", address, error)
                )
        except (AddressError, TimeoutError) as error:
            log.info("no way through %s: %s", address, error)
            return
        steering.offer(virtual, self._now(), patience=self._config.rescue_patience)
        if not steering.has(virtual):
            self._detours.abandon(virtual)
