"""The service that every peer offers to anyone: is it there, and who is it?"""

from __future__ import annotations

import msgspec

from lattica.identity.keys import PeerId
from lattica.rpc.buffers import Buffer
from lattica.rpc.methods import method
from lattica.rpc.rpc import Rpc

NAME = "peer"


class PeerHello(msgspec.Struct, frozen=True, array_like=True):
    """Who a peer says it is. Later versions may add fields."""

    peer: PeerId
    name: str
    version: str  # of lattica-mesh


class PeerService:
    """Registered as `peer` on every `Rpc` of a mesh."""

    def __init__(self, rpc: Rpc, *, version: str = "") -> None:
        self._rpc = rpc
        self._version = version

    @method(scope=None)
    async def ping(self, data: Buffer | None = None) -> Buffer | None:
        """`data`, as it came."""
        return data

    @method(scope=None)
    async def hello(self) -> PeerHello:
        """Who this is."""
        return PeerHello(self._rpc.local, self._rpc.name, self._version)


def install(rpc: Rpc, *, version: str = "") -> None:
    """Offer the service `peer`."""
    rpc.register(NAME, PeerService(rpc, version=version))


def peer_client(rpc: Rpc, peer: PeerId, *, timeout: float | None = None) -> PeerService:
    """The service `peer` of another peer."""
    return rpc.client(peer, PeerService, NAME, timeout=timeout)
