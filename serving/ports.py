"""What serving needs of a peer. `lattica.peer.Peer` has all of it.

Kept small so that tests can compose it from the layers over in-memory links.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from lattica.identity.keys import Identity, PeerId
from lattica.store import Blocks

S = TypeVar("S")


class MeshPeer(Protocol):
    """One member of a mesh, as serving uses it."""

    @property
    def identity(self) -> Identity:
        """Its key."""
        ...

    @property
    def name(self) -> str:
        """How people call it."""
        ...

    @property
    def blocks(self) -> Blocks:
        """Its blocks: the model's files."""
        ...

    @property
    def rpc(self) -> Any:
        """Its `Rpc`; `unregister(name)` and its `links` are used."""
        ...

    @property
    def dht(self) -> Any:
        """Its `Dht`; `find_peer(peer)` is used, which teaches the links an address."""
        ...

    def client(
        self, peer: PeerId, service: type[S], name: str, *, timeout: float | None = None
    ) -> S:
        """A typed stub of another peer's service (or of its own)."""
        ...

    def serve(self, name: str, service: Any) -> Any:
        """Offer a service to the mesh."""
        ...

    async def document(self, name: str) -> Any:
        """Open a replicated document: `map(name)` (items, set, delete) and `changed()` are used."""
        ...
