"""What a peer keeps for others, given to those who should keep it: when it leaves, or they came.

Authors renew what they say, and find new keepers for it. What is kept and was not renewed in time
is an orphan: its author is gone, and its keepers see to it that others have it when they go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import anyio

from lattica.clock import Clock
from lattica.config import DhtConfig
from lattica.dht.protocol import DhtProtocol
from lattica.dht.routing import PeerNode, Table
from lattica.dht.storage import Kept, Storage
from lattica.identity import wire
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed

OVERDUE = 0.45  # of its time: authors renew after a third, if they and their keepers live

Parcels = dict[PeerId, tuple[PeerNode, list[Signed]]]


class HandingOver:
    """Gives records of others to other peers, in bounded parcels."""

    def __init__(
        self,
        local: PeerId,
        storage: Storage,
        table: Table,
        protocol: DhtProtocol,
        *,
        config: DhtConfig,
        clock: Clock,
    ) -> None:
        self._local = local
        self._storage = storage
        self._table = table
        self._protocol = protocol
        self._config = config
        self._clock = clock
        self._looked = clock.monotonic()
        self._given: dict[Signed, set[PeerId]] = {}  # orphans, and who has taken them from here

    async def all(self) -> None:
        """Those who come next to each key get its records: the others have their copies."""
        parcels: Parcels = {}
        for kept in self._others():
            place = int.from_bytes(kept.record.key, "big")
            for node in self._table.closest(place, self._config.replicas)[-2:]:
                parcels.setdefault(node.peer, (node, []))[1].append(kept.envelope)
        await self._send(parcels)

    async def orphans(self) -> int:
        """Give orphans to the peers closest to them that have not had them from here.

        Once in `rekeep_every` seconds, and up to `rekeep_bytes` at a time; how many were taken.
        """
        now = self._clock.monotonic()
        if now - self._looked < self._config.rekeep_every:
            return 0
        self._looked = now
        parcels: Parcels = {}
        room = self._config.rekeep_bytes
        orphans = list(self._orphans())
        self._given = {each.envelope: self._given.get(each.envelope, set()) for each in orphans}
        orphans.sort(key=lambda kept: kept.record.expires, reverse=True)
        for kept in orphans:
            given = self._given[kept.envelope]
            for node in self._keepers(kept):
                if node.peer not in given and room >= 0:
                    room -= len(kept.envelope.payload)
                    parcels.setdefault(node.peer, (node, []))[1].append(kept.envelope)
        return await self._send(parcels)

    def _orphans(self) -> Iterable[Kept]:
        now = self._clock.time()
        for kept in self._others():
            if now - kept.at > OVERDUE * (kept.record.expires - kept.at):
                yield kept

    def _keepers(self, kept: Kept) -> Sequence[PeerNode]:
        """Who should keep a record besides this peer, if this one still should."""
        place = int.from_bytes(kept.record.key, "big")
        closest = self._table.closest(place, self._config.replicas)
        mine = self._table.node.long_id ^ place
        closer = sum(node.long_id ^ place < mine for node in closest)
        return closest[: self._config.replicas - (closer < self._config.replicas)]

    def _others(self) -> Iterable[Kept]:
        now = self._clock.time()
        for kept in self._storage:
            if kept.envelope.author != self._local and kept.record.expires > now:
                yield kept

    async def _send(self, parcels: Parcels) -> int:
        taken = 0

        async def send(node: PeerNode, envelopes: Sequence[Signed]) -> None:
            nonlocal taken
            for part in parts_within(envelopes, self._config.max_transfer):
                count = await self._protocol.call_hand_over(node, wire.encode(tuple(part)))
                if count is None:
                    continue
                taken += count
                for envelope in part:  # what it did not keep it has newer, or has no room for
                    self._given.get(envelope, set()).add(node.peer)

        async with anyio.create_task_group() as transfers:
            for node, envelopes in parcels.values():
                transfers.start_soon(send, node, envelopes)
        return taken


def parts_within(envelopes: Sequence[Signed], size: int) -> list[list[Signed]]:
    """The envelopes in parts, none of which is larger than `size` bytes when encoded."""
    parts: list[list[Signed]] = [[]]
    room = size
    for envelope in envelopes:
        room -= len(envelope.payload) + 256  # the envelope around the payload
        if room < 0 and parts[-1]:
            parts.append([])
            room = size - len(envelope.payload) - 256
        parts[-1].append(envelope)
    return [part for part in parts if part]
