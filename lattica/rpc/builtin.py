"""The service that every peer offers to anyone: is it there, and who is it?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from lattica.config import KIB, MIB
from lattica.errors import BadArgumentsError
from lattica.identity.keys import PeerId
from lattica.rpc.buffers import Buffer
from lattica.rpc.methods import method
from lattica.rpc.rpc import Rpc

NAME = "peer"
MAX_SUNK = 4 * MIB  # bytes in one call of `sink`
MAX_PIECE = 1 * MIB  # bytes in one item of `source`
MAX_SOURCE = 10.0  # seconds that one `source` lasts
AT_ONCE = 32  # calls of `sink` that run for all peers together
SOURCES = 4  # streams of `source` for all peers together


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

    @method(max_concurrency=AT_ONCE)
    async def sink(self, data: Buffer) -> int:
        """Takes bytes in to measure a link; how many came.

        Raises:
            BadArgumentsError: more than `MAX_SUNK`.
        """
        if len(data) > MAX_SUNK:
            raise BadArgumentsError(f"sink takes at most {MAX_SUNK // KIB} KiB a call")
        return len(data)

    @method(max_concurrency=SOURCES, max_queue=0)
    async def source(self, size: int, seconds: float) -> AsyncIterator[Buffer]:
        """Pieces of `size` bytes for `seconds`, to measure a link.

        Raises:
            BadArgumentsError: more than `MAX_PIECE` or `MAX_SOURCE`.
        """
        if not 0 < size <= MAX_PIECE or not 0 < seconds <= MAX_SOURCE:
            raise BadArgumentsError(
                f"source gives pieces of 1 to {MAX_PIECE // KIB} KiB for at most {MAX_SOURCE:g} s"
            )
        piece, loop = Buffer(bytes(size)), asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            yield piece

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
