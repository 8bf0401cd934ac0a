"""Meshes of peers in one process, over links in memory, with a clock moved by hand."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.abc

from lattica.clock import ManualClock
from lattica.config import DhtConfig
from lattica.dht import Dht
from lattica.identity import grants
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed
from lattica.identity.tickets import Contact
from lattica.link.memory import MemoryLinks, MemoryNetwork
from lattica.rpc import Rpc
from tests.dht.support import NOW, identity

CONFIG = DhtConfig(
    record_ttl=120.0,
    republish_every=40.0,
    reunite_every=40.0,
    query_timeout=2.0,
    slow_query=1.0,  # a busy test machine must not look like a slow peer
    maintain_every=3600.0,  # upkeep is called by hand
)
AUTHORITY = 9999


class RecordingLinks(MemoryLinks):
    """Remembers what it was taught."""

    learned: dict[PeerId, Sequence[str]]

    def learn(self, peer: PeerId, addresses: Sequence[str]) -> None:
        self.__dict__.setdefault("learned", {})[peer] = tuple(addresses)


@dataclass
class Peer:
    """A peer and the task it lives in."""

    identity: Identity
    links: RecordingLinks
    rpc: Rpc
    dht: Dht
    address: str
    stop: anyio.Event = field(default_factory=anyio.Event)
    stopped: anyio.Event = field(default_factory=anyio.Event)

    @property
    def id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def contact(self) -> Contact:
        return Contact(self.id, (self.address,))


class Mesh:
    """Starts and kills peers."""

    def __init__(self, tasks: anyio.abc.TaskGroup, config: DhtConfig, latency: float) -> None:
        self.network = MemoryNetwork(latency=latency)
        self.clock = ManualClock(NOW)
        self.peers: list[Peer] = []
        self.random = random.Random(5)
        self._tasks = tasks
        self._config = config
        self._next = 0

    async def start(
        self,
        *,
        number: int | None = None,
        member: bool = True,
        serve: bool = True,
        with_dht: bool = True,
        directory: Path | None = None,
    ) -> Peer:
        """A new peer that knows nobody."""
        if number is None:
            number = self._next
            self._next += 1
        who, authority = identity(number), identity(AUTHORITY)
        chain: tuple[Signed, ...] = ()
        if member:
            chain = (
                grants.issue(
                    authority,
                    mesh=authority.peer_id,
                    subject=who.peer_id,
                    scopes=grants.MEMBER,
                    expires=NOW + 1e6,
                ),
            )
        membership = grants.Membership(authority.peer_id, chain)
        links = RecordingLinks(self.network, who, membership, clock=self.clock)
        rpc = Rpc(links)
        address = f"10.0.0.1:{number + 1}"
        dht = Dht(
            rpc,
            who,
            config=self._config,
            clock=self.clock,
            addresses=lambda: (address,),
            directory=directory,
            serve=serve,
        )
        dht.register_kind("note", str)
        dht.register_kind("blob", bytes)
        peer = Peer(who, links, rpc, dht, address)
        started = anyio.Event()
        self._tasks.start_soon(self._live, peer, started, with_dht)
        await started.wait()
        self.peers.append(peer)
        return peer

    async def join(self, count: int) -> list[Peer]:
        """Peers that bootstrap one after the other, each through one that is there already."""
        joined = []
        for _ in range(count):
            entries = [self.random.choice(self.peers).contact] if self.peers else []
            peer = await self.start()
            await peer.dht.bootstrap(entries)
            joined.append(peer)
        return joined

    async def kill(self, peer: Peer) -> None:
        """The peer vanishes without a word."""
        peer.links.leave()
        peer.stop.set()
        await peer.stopped.wait()
        self.peers.remove(peer)

    async def _live(self, peer: Peer, started: anyio.Event, with_dht: bool) -> None:
        async with peer.rpc:
            if with_dht:
                async with peer.dht:
                    started.set()
                    await peer.stop.wait()
            else:
                started.set()
                await peer.stop.wait()
        peer.stopped.set()


@asynccontextmanager
async def mesh(
    count: int = 0, *, config: DhtConfig = CONFIG, latency: float = 0.0, limit: float = 60.0
) -> AsyncIterator[Mesh]:
    """A mesh of `count` peers that know each other through bootstrap alone."""
    with anyio.fail_after(limit):
        async with anyio.create_task_group() as tasks:
            made = Mesh(tasks, config, latency)
            try:
                await made.join(count)
                yield made
            finally:
                for peer in tuple(made.peers):
                    peer.stop.set()


async def eventually(condition: Callable[[], bool], *, limit: float = 5.0) -> None:
    """Give the other tasks turns until `condition` holds."""
    with anyio.fail_after(limit):
        while not condition():
            await anyio.sleep(0.005)
