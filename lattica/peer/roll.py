"""The mesh's roll: each peer's capability record, and what others say there."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from typing import NoReturn

import anyio

from lattica.actors.directory import NODE
from lattica.actors.messages import NodeInfo
from lattica.clock import Clock
from lattica.dht import Dht, dht_key
from lattica.errors import LatticaError
from lattica.identity.keys import PeerId
from lattica.identity.tickets import Contact

log = logging.getLogger("lattica.peer")

ANNOUNCE_EVERY = 100.0  # seconds between capability records that say nothing new
ANNOUNCE_STEP = 0.5  # seconds; changes are looked for this often
ANNOUNCE_TTL = 300.0


class Roll:
    """All peers of one mesh, as each says of itself."""

    def __init__(self, dht: Dht, mesh: PeerId, clock: Clock) -> None:
        self._dht = dht
        self._key = dht_key("nodes", mesh)
        self._clock = clock

    async def announce(self, own: Callable[[], NodeInfo]) -> NoReturn:
        """Publish this peer's own record whenever it changed, and before it expires."""
        said: NodeInfo | None = None
        due = 0.0
        while True:
            info = own()
            if info != said or self._clock.monotonic() >= due:
                try:
                    await self._dht.put(self._key, "node", info, ttl=ANNOUNCE_TTL)
                except LatticaError as error:
                    log.info("the capability record was not stored: %s", error)
                else:
                    said = info
                due = self._clock.monotonic() + ANNOUNCE_EVERY
            await anyio.sleep(ANNOUNCE_STEP)

    async def relays(self) -> Sequence[Contact]:
        """Peers that say they relay, in no order that all others share."""
        found = await self._dht.get(self._key, NODE, NodeInfo)
        relays = [
            Contact(record.author, record.value.addresses)
            for record in found
            if record.value.relays and record.author != self._dht.local
        ]
        random.shuffle(relays)
        return relays
