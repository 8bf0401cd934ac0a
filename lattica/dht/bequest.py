"""A replica's leases, handed to those who come next for each key, when the replica leaves.

Without it a mesh most of whose replicas go at once, as when a cluster is restarted, would forget
who has a key before its holder renews, and give it to another while the holder still believes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import anyio

from lattica.config import DhtConfig
from lattica.dht.ballots import quorum
from lattica.dht.lease_book import read_claim
from lattica.dht.lease_keeper import LeaseKeeper
from lattica.dht.routing import PeerNode, Table
from lattica.errors import BusyError, RecordError
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed

MAX_CLAIMS = 128  # in one call
Call = Callable[[PeerNode, tuple[Signed, ...]], Awaitable[int | None]]


class Bequest:
    """Gives leases away, and takes them from those who were closer to their keys."""

    def __init__(self, keeper: LeaseKeeper, table: Table, config: DhtConfig) -> None:
        self._keeper = keeper
        self._table = table
        self._config = config

    async def leave(self, call: Call, *, but: PeerId) -> None:
        """Give everything but what `but` has, who gives its keys back, to the heirs.

        `call(heir, claims)` does so; None: there was no answer.
        """
        parcels: dict[PeerId, tuple[PeerNode, list[Signed]]] = {}
        for key, envelope in self._keeper.current():
            if envelope.author != but:
                for node in self._heirs(int.from_bytes(key, "big")):
                    parcels.setdefault(node.peer, (node, []))[1].append(envelope)

        async def send(node: PeerNode, claims: Sequence[Signed]) -> None:
            for start in range(0, len(claims), MAX_CLAIMS):
                part = tuple(claims[start : start + MAX_CLAIMS])
                if await call(node, part) is None:
                    return

        async with anyio.create_task_group() as sends:
            for node, claims in parcels.values():
                sends.start_soon(send, node, claims)

    async def take(self, claim: Signed, sender: PeerNode, *, root: PeerId | None) -> bool:
        """Grant a lease on the word of a replica that leaves; whether that was done.

        Only who had no say about the key until now takes one, and only where it knows of no
        holder: who is a replica already was asked by the holder itself. The claim is the
        holder's own and was made within the last minute, so it can be made neither up nor older.
        """
        try:
            said = read_claim(claim, self._config)
            if not said.length or self._keeper.told(said.key) is not None:
                return False
            place = int.from_bytes(said.key, "big")
            mine = self._table.node.long_id ^ place
            if sender.long_id ^ place >= mine or not self._is_heir(place, mine):
                return False
            lease = await self._keeper.ask(claim, root=root)
        except (RecordError, BusyError):
            return False
        return lease is not None and lease.claim == claim

    def _heirs(self, place: int) -> list[PeerNode]:
        """Who comes after the replicas, if this peer is one; as many, for all may leave at once."""
        others = self._config.lease_replicas - 1
        closest = self._table.closest(place, others + self._config.lease_replicas)
        mine = self._table.node.long_id ^ place
        if sum(node.long_id ^ place < mine for node in closest[: others + 1]) > others:
            return []
        return closest[others:]

    def _is_heir(self, place: int, mine: int) -> bool:
        """Whether so many are closer that a lie told to all who pass for heirs decides nothing.

        Not all that are closer are in this peer's table. Of the replicas, fewer than may lie pass.
        """
        replicas = self._config.lease_replicas
        closest = self._table.closest(place, replicas)
        return sum(node.long_id ^ place < mine for node in closest) > quorum(replicas)
