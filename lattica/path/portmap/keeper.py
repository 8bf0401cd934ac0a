"""Keeps mappings at one gateway: the face of all protocols, and the shell of `Leases`."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import anyio

from lattica.config import PortMapConfig
from lattica.path.portmap.dialects import Dialect
from lattica.path.portmap.leases import NEVER, Leases
from lattica.path.portmap.mapping import Mapping, Want
from lattica.path.portmap.network import Datagrams, Network, Route

Changed = Callable[[], None]


class Keeper(Protocol):
    """Mappings at one gateway, kept while `run` runs."""

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """What is granted now."""
        ...

    async def run(self) -> str:
        """Keep the mappings for as long as that is possible; then say why it is not."""
        ...

    async def release(self) -> None:
        """Remove what `run` has made, also after it was cancelled. The caller has a deadline."""
        ...


class DatagramKeeper:
    """See `Keeper`. By PCP and NAT-PMP, one socket for both."""

    def __init__(
        self,
        route: Route,
        wants: Sequence[Want],
        dialects: Sequence[Dialect],
        network: Network,
        *,
        config: PortMapConfig,
        counters: Counter[str],
        changed: Changed,
    ) -> None:
        """`changed` is called whenever `mappings` may have changed."""
        self._route = route
        self._network = network
        self._config = config
        self._changed = changed
        self._woken = asyncio.Event()
        self._leases = Leases(
            route.gateway,
            wants,
            dialects,
            _now(),
            config=config,
            counters=counters,
            chance=random.Random(),
        )

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        return self._leases.mappings

    async def run(self) -> str:
        ear = await self._network.announcements(self._route.local, self._announced)
        try:
            return await self._converse(lambda: bool(self._leases.failure))
        finally:
            if ear is not None:
                ear.close()

    async def release(self) -> None:
        self._leases.release()
        await self._converse(lambda: self._leases.is_released)

    async def _converse(self, is_over: Callable[[], bool]) -> str:
        """Send what is due and take in answers."""
        leases = self._leases
        try:
            sock: Datagrams = await self._network.open(self._route.local, self._received)
        except OSError as error:
            return f"no socket at {self._route.local}: {error}"
        try:
            while not is_over():
                self._woken.clear()
                datagram = leases.poll(_now())
                if datagram is not None:
                    sock.send(datagram, (self._route.gateway, self._config.gateway_port))
                self._changed()
                if is_over():
                    break
                # Without a limit only where nothing is due: then an answer or the owner ends it.
                pause = None if leases.due == NEVER else max(leases.due - _now(), 0.0)
                with anyio.move_on_after(pause):
                    await self._woken.wait()
            return leases.failure
        finally:
            sock.close()

    def _received(self, datagram: bytes, source: tuple[str, int]) -> None:
        self._leases.receive(datagram, source, _now())
        self._woken.set()

    def _announced(self, datagram: bytes, source: tuple[str, int]) -> None:
        """Anybody here can forge that, so it only makes us ask (RFC 6887 §14.1.3)."""
        if datagram and source == (self._route.gateway, self._config.gateway_port):
            self._leases.hint(_now())
            self._woken.set()


def _now() -> float:
    return asyncio.get_running_loop().time()
