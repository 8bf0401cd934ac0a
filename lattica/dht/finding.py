"""What others have said: gathered from those who keep it, merged, and tried for life."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import anyio

from lattica.clock import Clock
from lattica.config import DhtConfig
from lattica.dht.keys import checked, node_id
from lattica.dht.merge import Merge
from lattica.dht.messages import PeerAddresses, clean_addresses
from lattica.dht.neighbours import Neighbours
from lattica.dht.records import PEER, Found, Verifier
from lattica.dht.routing import PeerNode
from lattica.dht.storage import Storage
from lattica.identity.keys import PeerId
from lattica.identity.tickets import Contact
from lattica.rpc import Rpc

T = TypeVar("T")


class Finder:
    """Reads the DHT for one peer, which may keep some of it itself."""

    def __init__(
        self,
        rpc: Rpc,
        storage: Storage,
        neighbours: Neighbours,
        verifier: Verifier,
        *,
        config: DhtConfig,
        clock: Clock,
        counters: Counter[str],
    ) -> None:
        self._rpc = rpc
        self._storage = storage
        self._neighbours = neighbours
        self._verifier = verifier
        self._config = config
        self._clock = clock
        self._counters = counters

    async def gather(self, key: bytes, kind: str) -> tuple[Merge, list[PeerNode]]:
        """The records of a kind under a key, and the live peers closest to it, nearest first."""
        merge = Merge(checked(key), kind, self._verifier, self._config, self._counters)
        now = self._clock.time()
        for kept in self._storage.get(key, kind, now=now):
            merge.add(kept.envelope, now=now)
        nodes = await self._neighbours.gather(
            key, kind, lambda data: merge.add_encoded(data, now=self._clock.time()), merge.digest
        )
        return merge, nodes

    async def peer(self, peer: PeerId) -> Contact | None:
        """Where another peer can be dialled; see `Dht.find_peer`."""
        known = self._neighbours.table.find(peer)
        if known is not None and self._rpc.links.find(peer) is not None:
            return known.contact
        merge, nodes = await self.gather(node_id(peer), PEER)
        said = [found.value for found in merge.found(PeerAddresses) if found.author == peer]
        addresses = clean_addresses(said[0].addresses) if said else ()
        if not addresses:
            heard = [node for node in nodes if node.peer == peer]
            if not heard and not said:
                return None
            addresses = heard[0].addresses if heard else ()
        if addresses:
            self._rpc.links.learn(peer, addresses)
        return Contact(peer, addresses)

    async def alive(self, peer: PeerId) -> bool:
        """Whether a peer answers now; see `Dht.alive`."""
        return peer == self._rpc.local or await self._neighbours.alive(peer)

    async def only_live(self, found: Sequence[Found[T]]) -> list[Found[T]]:
        """Those whose authors answer now."""
        alive: set[PeerId] = set()

        async def ask(peer: PeerId) -> None:
            if await self.alive(peer):
                alive.add(peer)

        async with anyio.create_task_group() as pings:
            for record in found:
                pings.start_soon(ask, record.author)
        return [record for record in found if record.author in alive]
