"""Calls to volunteers that may not be linked yet: the DHT tells where they are."""

from __future__ import annotations

from lattica.errors import UnknownPeerError
from lattica.identity.keys import PeerId
from serving.messages import SERVICE, StageInfo
from serving.ports import MeshPeer
from serving.service import StageService


async def ask_info(peer: MeshPeer, other: PeerId, timeout: float) -> StageInfo:
    """What `other` offers now; afterwards the two are linked.

    Raises:
        LinkError, RpcError: it does not answer.
        UnknownModelError: it volunteers no longer.
    """
    stub = peer.client(other, StageService, SERVICE, timeout=timeout)
    try:
        return await stub.info()
    except UnknownPeerError:
        if await peer.dht.find_peer(other) is None:
            raise
    return await stub.info()
