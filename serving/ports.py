"""What serving needs of a peer. `lattica.peer.Peer` has all of it.

Kept small so that tests can compose it from the layers over in-memory links.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lattica.identity.keys import Identity

S = TypeVar("S")


class DocumentMap(Protocol):
    """One map of a replicated document: JSON-like values under string keys."""

    def items(self) -> Iterable[tuple[str, Any]]:
        """All entries."""
        ...

    def set(self, key: str, value: Any) -> None:
        """Write an entry; it is replicated from now on."""
        ...

    def delete(self, key: str) -> None:
        """Remove an entry."""
        ...


class Document(Protocol):
    """A replicated document."""

    def map(self, name: str) -> Any:
        """One of its maps, a `DocumentMap`."""
        ...

    async def changed(self) -> Any:
        """Wait for the next change, from here or elsewhere."""
        ...


class Blocks(Protocol):
    """Content-addressed blocks."""

    async def add(self, path: Path) -> str:
        """Add a folder, announce it, and return its manifest's id."""
        ...

    async def fetch(
        self,
        manifest_id: str,
        dest_dir: Path,
        files: Any = None,
        progress: Callable[..., None] | None = None,
    ) -> Path:
        """Fetch a folder's files from whoever has their blocks."""
        ...


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
    def blocks(self) -> Any:
        """Its `Blocks`."""
        ...

    @property
    def rpc(self) -> Any:
        """Its `Rpc`; `unregister(name)` and `links.find(peer)` are used."""
        ...

    @property
    def dht(self) -> Any:
        """Its `Dht`; `find_peer(peer)` is used, which teaches the links an address."""
        ...

    def client(self, peer: Any, service: type[S], name: str, *, timeout: float | None = None) -> S:
        """A typed stub of another peer's service (or of its own)."""
        ...

    def serve(self, name: str, service: Any) -> Any:
        """Offer a service to the mesh."""
        ...

    async def document(self, name: str) -> Any:
        """Open a replicated `Document`."""
        ...
