"""A UDP forwarder between one dialler and one peer, that can go silent like a pulled cable."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from lattica.path import addresses


class Forwarder:
    """Two loopback sockets, one towards each end."""

    def __init__(self) -> None:
        self.is_silent = False
        self.address = ""  # what the dialler dials
        self._dialler: tuple[str, int] | None = None
        self._front: Any = None
        self._back: Any = None

    def from_dialler(self, data: bytes, source: tuple[str, int]) -> None:
        """A packet arrived at the front."""
        self._dialler = source
        if not self.is_silent:
            self._back.sendto(data)

    def from_peer(self, data: bytes, _source: tuple[str, int]) -> None:
        """A packet arrived at the back."""
        if not self.is_silent and self._dialler is not None:
            self._front.sendto(data, self._dialler)


class _Socket(asyncio.DatagramProtocol):
    def __init__(self, received: Any) -> None:
        self._received = received

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._received(data, addr)


@contextlib.asynccontextmanager
async def forwarding(address: str) -> AsyncIterator[Forwarder]:
    """Forward to the peer at `address` for as long as the context lasts."""
    forwarder, loop = Forwarder(), asyncio.get_running_loop()
    forwarder._back, _ = await loop.create_datagram_endpoint(
        lambda: _Socket(forwarder.from_peer), remote_addr=addresses.split(address)
    )
    forwarder._front, _ = await loop.create_datagram_endpoint(
        lambda: _Socket(forwarder.from_dialler), local_addr=("127.0.0.1", 0)
    )
    forwarder.address = addresses.join(*forwarder._front.get_extra_info("sockname")[:2])
    try:
        yield forwarder
    finally:
        forwarder._front.close()
        forwarder._back.close()
