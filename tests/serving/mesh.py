"""A mesh in one process: real RPC and blocks over in-memory links; the roster by reference."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
import msgspec

from lattica.identity import grants
from lattica.identity.grants import Membership, issue
from lattica.identity.keys import Identity, PeerId
from lattica.link.memory import MemoryLinks, MemoryNetwork
from lattica.rpc import Rpc
from lattica.store import Blocks

S = TypeVar("S")


class SharedDocument:
    """A document that every peer of the test sees at once."""

    def __init__(self) -> None:
        self._maps: dict[str, SharedMap] = {}
        self._waiting: list[anyio.Event] = []

    def map(self, name: str) -> SharedMap:
        """One of its maps."""
        return self._maps.setdefault(name, SharedMap(self))

    async def changed(self) -> None:
        """Wait for the next change."""
        event = anyio.Event()
        self._waiting.append(event)
        await event.wait()

    def notify(self) -> None:
        """Wake those that wait."""
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            event.set()


class SharedMap:
    """A map of a `SharedDocument`."""

    def __init__(self, document: SharedDocument) -> None:
        self._document = document
        self._values: dict[str, Any] = {}

    def items(self) -> Iterable[tuple[str, Any]]:
        """All entries."""
        return list(self._values.items())

    def set(self, key: str, value: Any) -> None:
        """Write an entry."""
        self._values[key] = msgspec.json.decode(msgspec.json.encode(value))
        self._document.notify()

    def delete(self, key: str) -> None:
        """Remove an entry."""
        self._values.pop(key, None)
        self._document.notify()


class NoDht:
    """Over memory links every address is known."""

    async def find_peer(self, peer: PeerId) -> None:
        """Nothing to teach."""


class FakePeer:
    """What `lattica.peer.Peer` is to serving."""

    def __init__(self, mesh: Mesh, name: str) -> None:
        self.identity = Identity.generate()
        self.name = name
        self.mesh = mesh
        self.alive = True
        chain = issue(
            mesh.authority,
            mesh=mesh.authority.peer_id,
            subject=self.identity.peer_id,
            scopes=grants.MEMBER,
            expires=2e9,
        )
        membership = Membership(mesh.authority.peer_id, (chain,))
        self.links = MemoryLinks(mesh.network, self.identity, membership, name=name)
        self.rpc = Rpc(self.links, name=name)
        self.dht = NoDht()
        self.blocks = Blocks(mesh.directory / f"blocks-{name}", self.rpc, None)

    @property
    def id(self) -> PeerId:
        """Its PeerId."""
        return self.identity.peer_id

    def client(self, peer: PeerId, service: type[S], name: str, *, timeout: float = 30.0) -> S:
        """A stub."""
        return self.rpc.client(peer, service, name, timeout=timeout)

    def serve(self, name: str, service: object) -> None:
        """Offer a service."""
        self.rpc.register(name, service)

    async def document(self, name: str) -> SharedDocument:
        """The document of that name."""
        return self.mesh.documents.setdefault(name, SharedDocument())

    def suspects(self, other: FakePeer) -> None:
        """As when nothing is heard of `other`, and the link to it is still up."""
        peers, now = self.links._peers, asyncio.get_running_loop().time()
        peers.tell(peers.supervisor.suspect(other.id, "nothing was heard", now))

    def die(self) -> None:
        """As `kill -9` looks from outside: every link is lost, nothing is said."""
        self.alive = False
        self.links.leave()


class Mesh:
    """The peers of one test."""

    def __init__(self, directory: Path, latency: float = 0.0) -> None:
        """`directory`: where the peers keep their blocks."""
        self.network = MemoryNetwork(latency=latency)
        self.authority = Identity.generate()
        self.documents: dict[str, SharedDocument] = {}
        self.directory = directory
        self.peers: dict[str, FakePeer] = {}
        self._stack: AsyncExitStack

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Mesh]:
        """For as long as the test lasts."""
        async with AsyncExitStack() as stack:
            self._stack = stack
            yield self

    async def peer(self, name: str) -> FakePeer:
        """One more peer."""
        peer = self.peers[name] = FakePeer(self, name)
        await self._stack.enter_async_context(peer.rpc)
        await self._stack.enter_async_context(peer.blocks)
        return peer

    async def enter(self, manager: Any) -> Any:
        """Keep a context open until the mesh ends."""
        return await self._stack.enter_async_context(manager)
