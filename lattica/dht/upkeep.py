"""What a peer of the DHT does again and again, so that what it knows and says stays true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NoReturn

import anyio

from lattica.clock import Clock
from lattica.config import DhtConfig
from lattica.dht.archive import Archive
from lattica.dht.handing_over import HandingOver
from lattica.dht.keys import node_id
from lattica.dht.messages import PeerAddresses
from lattica.dht.neighbours import Neighbours
from lattica.dht.publisher import Publisher
from lattica.dht.records import PEER
from lattica.dht.storage import Storage
from lattica.errors import LatticaError
from lattica.identity.keys import PeerId


class Upkeep:
    """Rounds of it, and the records of a peer's own addresses that go with them."""

    def __init__(
        self,
        local: PeerId,
        storage: Storage,
        archive: Archive,
        neighbours: Neighbours,
        publisher: Publisher,
        handing_over: HandingOver,
        *,
        where: Callable[[], tuple[str, ...]],
        serves: bool,
        config: DhtConfig,
        clock: Clock,
        counters: Counter[str],
    ) -> None:
        """`where()` is where others can dial this peer; without `serves` it keeps nothing."""
        self._local = local
        self._storage = storage
        self._archive = archive
        self._neighbours = neighbours
        self._publisher = publisher
        self._handing_over = handing_over
        self._where = where
        self._serves = serves
        self._config = config
        self._clock = clock
        self._counters = counters
        self._reunited = clock.monotonic()
        self._was_alone = True
        self._said_where: tuple[str, ...] | None = None

    async def run(self) -> NoReturn:
        """A round each `maintain_every` seconds; what ends one early is counted."""
        while True:
            await anyio.sleep(self._config.maintain_every)
            try:
                await self.round()
            except (LatticaError, OSError) as error:
                self._counters[f"maintain:{type(error).__name__}"] += 1

    async def round(self) -> None:
        """See `Dht.maintain`."""
        self._storage.expire(now=self._clock.time())
        await self._neighbours.rejoin_if_alone()
        await self._reunite()
        # What was said while nobody was there to keep a copy is said again at once.
        await self.republish(only_due=not self._was_alone)
        await self._neighbours.refresh()
        if self._serves:
            await self._handing_over.orphans()
        self._neighbours.save()
        await self._archive.save_if_due()

    async def republish(self, *, only_due: bool = False) -> int:
        """See `Dht.republish`."""
        moved = self._said_where not in (None, self._where())
        if moved:
            self.say_where()
        self._was_alone = not len(self._neighbours.table)
        return await self._publisher.republish(only_due=only_due and not moved)

    def say_where(self) -> None:
        """Own a record of where this peer can be dialled; `republish` tells others."""
        self._said_where = self._where()
        self._publisher.own(node_id(self._local), PEER, PeerAddresses(self._said_where))

    def say_no_more(self) -> None:
        """This peer leaves: if it moves now, that is nobody's concern."""
        self._said_where = None

    async def _reunite(self) -> None:
        now = self._clock.monotonic()
        if self._reunited + self._config.reunite_every <= now:
            self._reunited = now
            if await self._neighbours.reunite():
                await self.republish()
