"""Whole peers, but for stores, in one process: memory links, real RPC, DHT, hosts and workers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from lattica.actors.context import Context, current, set_current
from lattica.actors.host import Host
from lattica.actors.messages import NodeInfo
from lattica.actors.owner import Owner
from lattica.config import ActorsConfig
from lattica.dht import Dht, dht_key
from lattica.identity import grants
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed
from lattica.identity.tickets import Contact
from lattica.link.memory import MemoryLinks, MemoryNetwork
from lattica.rpc import Rpc


class Member:
    """One peer of the mesh."""

    def __init__(
        self,
        mesh: Mesh,
        name: str,
        scopes: Sequence[str],
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        self.mesh = mesh
        self.name = name
        self.stop, self.stopped = anyio.Event(), anyio.Event()
        identity = Identity.generate()
        chain: tuple[Signed, ...] = ()
        if scopes:
            issued = grants.issue(
                mesh.authority,
                mesh=mesh.authority.peer_id,
                subject=identity.peer_id,
                scopes=scopes,
                expires=time.time() + 3600,
            )
            chain = (issued,)
        self.identity = identity
        membership = grants.Membership(mesh.authority.peer_id, chain)
        self.links = MemoryLinks(mesh.network, identity, membership, name=name)
        self.rpc = Rpc(self.links, name=name)
        self.dht = Dht(self.rpc, identity, addresses=lambda: (f"{name}:1",))
        self.owner = Owner(self.rpc, self.dht, mesh=mesh.authority.peer_id, config=mesh.config)
        self.host = Host(
            self.rpc, name, resources, labels, self.owner, mesh.directory / name, mesh.config
        )

    @property
    def peer(self) -> PeerId:
        """Its id."""
        return self.identity.peer_id

    def node_info(self) -> NodeInfo:
        """Its capability record."""
        return msgspec.structs.replace(self.host.node_info(), addresses=(f"{self.name}:1",))

    async def announce(self) -> None:
        """Publish the capability record."""
        key = dht_key("nodes", self.mesh.authority.peer_id)
        await self.dht.put(key, "node", self.node_info())

    def suspects(self, other: Member) -> None:
        """As when nothing is heard of `other`, and the link to it is still up."""
        peers, now = self.links._peers, asyncio.get_running_loop().time()
        peers.tell(peers.supervisor.suspect(other.peer, "nothing was heard", now))

    async def vanish(self) -> None:
        """As if its machine lost power: links are cut, then workers die."""
        self.links.leave()
        self.stop.set()
        await self.stopped.wait()

    async def run(
        self, first: Member | None, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Live until `stop` is set."""
        try:
            async with self.rpc, self.dht, self.owner, self.host:
                self.owner.offer(self.node_info)
                entries = [Contact(first.peer, ("first:1",))] if first is not None else []
                await self.dht.bootstrap(entries)
                await self.announce()
                task_status.started()
                await self.stop.wait()
        finally:
            self.stopped.set()

    @contextlib.contextmanager
    def driver(self) -> Iterator[Member]:
        """Use this peer as the driver of the program that the test is."""
        context = Context(self.owner, asyncio.get_running_loop(), kind="driver", name=self.name)
        set_current(context)
        try:
            yield self
        finally:
            context.close()
            set_current(None)


class Mesh:
    """Peers by name."""

    def __init__(self, directory: Path, config: ActorsConfig | None, tasks: TaskGroup) -> None:
        self.tasks = tasks
        self.directory = directory
        self.config = config or ActorsConfig()
        self.authority = Identity.generate()
        self.network = MemoryNetwork()
        self.members: dict[str, Member] = {}

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    async def add(
        self,
        name: str,
        *,
        scopes: Sequence[str] = grants.MEMBER,
        cpus: float = 2.0,
        resources: dict[str, float] | None = None,
        labels: dict[str, str] | None = None,
    ) -> Member:
        """Start a peer."""
        offered = {"CPU": cpus, "GPU": 0.0, "memory": 1e9, **(resources or {})}
        member = Member(self, name, scopes, offered, labels or {})
        first = next(iter(self.members.values()), None)
        self.members[name] = member
        await self.tasks.start(member.run, first)
        return member


async def ready(refs: Sequence[Any], count: int, timeout: float) -> list[bool]:
    """Which refs are ready once `count` are, or `timeout` seconds have passed."""
    context = current()
    ids = [ref.id for ref in refs]
    done = await context.run_async(context.core.wait, ids, count, timeout)
    return [each in done for each in ids]


async def until(condition: Callable[[], bool]) -> None:
    """Look again and again; the test's own time limit ends it."""
    while not condition():
        await anyio.sleep(0.02)


@contextlib.asynccontextmanager
async def mesh_of(
    directory: Path, *names: str, config: ActorsConfig | None = None, **options: Any
) -> AsyncIterator[Mesh]:
    """A mesh of peers that all offer the same; ends within seconds, whatever the test did."""
    async with anyio.create_task_group() as tasks:
        mesh = Mesh(directory, config, tasks)
        try:
            for name in names:
                await mesh.add(name, **options)
            yield mesh
        finally:
            for member in mesh.members.values():
                member.stop.set()
