"""Telling the DHT which manifests this peer provides."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import anyio

from lattica.dht import Dht
from lattica.errors import LatticaError
from lattica.store.swarm.source import KIND, Provider, provider_key

RETRY_EVERY = 5.0  # seconds between attempts to announce


class Announcer:
    """Announces until somebody has heard it; the DHT says it again from then on."""

    def __init__(self, dht: Dht | None, size: Callable[[str], int], counters: Counter[str]) -> None:
        """`size`: bytes of a manifest's files, by its id."""
        self._dht = dht
        self._size = size
        self._counters = counters
        self._due: set[str] = set()
        self._wake = anyio.Event()
        if dht is not None:
            dht.register_kind(KIND, Provider)

    def later(self, manifest_id: str) -> None:
        """Announce it when there is time."""
        self._due.add(manifest_id)
        self._wake.set()

    async def now(self, manifest_id: str) -> None:
        """Announce it; later, if nobody hears it now."""
        if self._dht is None:
            self._due.discard(manifest_id)
            return
        value = Provider(self._size(manifest_id))
        try:
            told = await self._dht.put(provider_key(manifest_id), KIND, value)
        except LatticaError as error:
            self._counters[f"announce:{type(error).__name__}"] += 1
            told = 0
        if told:
            self._due.discard(manifest_id)
        else:
            self._due.add(manifest_id)  # alone, for now

    async def forget(self, manifest_id: str) -> None:
        """Take it back."""
        self._due.discard(manifest_id)
        if self._dht is not None:
            await self._dht.remove(provider_key(manifest_id), KIND)

    async def run(self) -> None:
        """Announce what is due, again and again."""
        while True:
            self._wake = anyio.Event()
            for manifest_id in tuple(self._due):
                if manifest_id in self._due:  # it may have been forgotten meanwhile
                    await self.now(manifest_id)
            with anyio.move_on_after(RETRY_EVERY if self._due else math.inf):
                await self._wake.wait()
