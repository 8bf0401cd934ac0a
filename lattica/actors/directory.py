"""Which peers there are: capability records from the DHT, and links to those that live."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from lattica.actors.messages import NodeInfo
from lattica.clock import Clock
from lattica.dht import Dht, dht_key
from lattica.errors import LatticaError, UnknownPeerError
from lattica.identity.keys import PeerId
from lattica.link.interface import Link
from lattica.link.supervision import PeerState
from lattica.rpc import Rpc

NODE = "node"
MAX_AGE = 1.0  # seconds a listing is good for
DEAD_FOR = 3.0  # seconds a peer that did not answer is left alone; doubles each time
DEAD_MOST = 60.0
ALIVE_WITHIN = 2.0  # seconds in which a peer that is listed as alive must answer
DIALS = 16  # at a time
MAX_NAMES = 4096

log = logging.getLogger("lattica.actors")


class _Dead(NamedTuple):
    """A peer that did not answer."""

    until: float  # on the clock, seconds
    pause: float  # seconds
    sequence: int  # of its record by then


class Directory:
    """Finds peers and their records; remembers for a moment who did not answer."""

    def __init__(self, rpc: Rpc, dht: Dht, mesh: PeerId, clock: Clock) -> None:
        self._rpc = rpc
        self._dht = dht
        self._clock = clock
        self._key = dht_key("nodes", mesh)
        self._nodes: list[NodeInfo] = []
        self._read_at = float("-inf")
        self._reading: asyncio.Lock = asyncio.Lock()
        self._dead: dict[PeerId, _Dead] = {}
        self._sequences: dict[PeerId, int] = {}  # of each peer's record
        self._names: OrderedDict[PeerId, str] = OrderedDict()  # of those that are gone, too
        self.own_node: Callable[[], NodeInfo] | None = None
        rpc.links.subscribe(self._link_changed)
        dht.register_kind(NODE, NodeInfo, check=lambda author, _, node: node.peer == author)

    async def nodes(self, max_age: float = MAX_AGE) -> list[NodeInfo]:
        """Records of peers that are not known to be gone, this peer's own first."""
        async with self._reading:
            if self._clock.monotonic() - self._read_at > max_age:
                await self._read()
        return self._present()

    async def live(self) -> list[NodeInfo]:
        """As `nodes`, but each one has just been reached."""
        listed = await self.nodes(0.0)
        gate = asyncio.Semaphore(DIALS)

        async def answers(node: NodeInfo) -> bool:
            async with gate:
                return await self.is_alive(node.peer)

        alive = await asyncio.gather(*map(answers, listed))
        return [node for node, answered in zip(listed, alive, strict=True) if answered]

    async def is_alive(self, peer: PeerId) -> bool:
        """Whether a link to the peer exists or can be made."""
        if peer == self._rpc.local:
            return True
        try:
            async with asyncio.timeout(ALIVE_WITHIN):
                await self.reach(peer)
        except (LatticaError, TimeoutError):
            self.mark_dead(peer)
            return False
        return True

    async def reach(self, peer: PeerId) -> Link:
        """A link to a peer, whose addresses are looked up if they are not known.

        Raises:
            LinkError: there is none to be had.
        """
        link = await self._link(peer)
        if link.remote.name:
            self._remember(peer, link.remote.name)
        return link

    async def _link(self, peer: PeerId) -> Link:
        link = self._rpc.links.find(peer)
        if link is not None:
            return link
        for node in self._nodes:
            if node.peer == peer:
                self._rpc.links.learn(peer, node.addresses)
        try:
            return await self._rpc.links.connect(peer)
        except UnknownPeerError:
            if await self._dht.find_peer(peer) is None:
                raise
            return await self._rpc.links.connect(peer)

    def mark_dead(self, peer: PeerId) -> None:
        """Leave a peer alone for a while: it did not answer."""
        before = self._dead.get(peer)
        if before is not None and before.until > self._clock.monotonic():
            return  # several signs of one loss
        pause = DEAD_FOR if before is None else min(2 * before.pause, DEAD_MOST)
        until = self._clock.monotonic() + pause
        self._dead[peer] = _Dead(until, pause, self._sequences.get(peer, 0))

    def name_of(self, peer: PeerId) -> str:
        """A peer's name for people."""
        if (link := self._rpc.links.find(peer)) is not None and link.remote.name:
            return link.remote.name
        return self._names.get(peer) or peer.short

    def rtts(self) -> dict[PeerId, float]:
        """Round-trip times in seconds, by peer, of the links that there are."""
        found = {link.remote.peer: link.rtt for link in self._rpc.links.current()}
        found[self._rpc.local] = 0.0
        return found

    async def _read(self) -> None:
        try:
            found = await self._dht.get(self._key, NODE, NodeInfo)
        except LatticaError as error:
            log.warning("the capability records could not be read: %s", error)
            return
        finally:
            self._read_at = self._clock.monotonic()
        valid = [record for record in found if record.author == record.value.peer]
        self._nodes = [record.value for record in valid]
        self._sequences = {record.author: record.sequence for record in valid}
        for peer, dead in list(self._dead.items()):
            if self._sequences.get(peer, 0) > dead.sequence or peer not in self._sequences:
                del self._dead[peer]  # it has spoken since; or is forgotten by all

    def _present(self) -> list[NodeInfo]:
        now = self._clock.monotonic()
        links = self._rpc.links
        linked = {
            link.remote.peer
            for link in links.current()
            if links.state(link.remote.peer) is not PeerState.SUSPECT
        }
        others = [
            node
            for node in self._nodes
            if node.peer != self._rpc.local
            and (node.peer in linked or not self._is_dead(node.peer, now))
        ]
        for node in others:
            self._remember(node.peer, node.name)
        return [*([self.own_node()] if self.own_node is not None else []), *others]

    def _is_dead(self, peer: PeerId, now: float) -> bool:
        dead = self._dead.get(peer)
        return dead is not None and dead.until > now

    def _link_changed(self, link: Link, is_up: bool) -> None:
        # A lost link is the first sign of a lost peer; listings heed it at once.
        if is_up:
            self._dead.pop(link.remote.peer, None)
        else:
            self.mark_dead(link.remote.peer)

    def _remember(self, peer: PeerId, name: str) -> None:
        self._names[peer] = name
        if len(self._names) > MAX_NAMES:
            self._names.popitem(last=False)
