"""Opens ways through relays, for dials and for links that have lost their own."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import anyio
from anyio.abc import TaskGroup

from lattica.config import ReachConfig
from lattica.errors import AddressError, IdentityError, LatticaError, LinkError, RelayError
from lattica.identity import grants
from lattica.identity.keys import PeerId
from lattica.link.endpoint import Endpoint
from lattica.path import addresses as text
from lattica.path.interface import VirtualAddress
from lattica.path.relay import SESSION, RelayPath
from lattica.reach.legs import Legs
from lattica.reach.messages import SERVICE, Opening
from lattica.reach.service import ReachService
from lattica.rpc import Rpc

log = logging.getLogger("lattica.reach")


class Detours:
    """See `lattica.link.detour.Detour`."""

    def __init__(
        self, rpc: Rpc, endpoint: Endpoint, path: RelayPath, legs: Legs, config: ReachConfig
    ) -> None:
        self._rpc = rpc
        self._endpoint = endpoint
        self._path = path
        self._legs = legs
        self._config = config
        self._tasks: TaskGroup | None = None
        self._opened: dict[VirtualAddress, tuple[PeerId, bytes]] = {}
        path.released = self._released

    def start(self, tasks: TaskGroup) -> None:
        """Close what is no longer needed in `tasks`."""
        self._tasks = tasks

    def stop(self) -> None:
        """The tasks are about to end."""
        self._tasks = None

    async def open(
        self, peer: PeerId, address: str, failed: Callable[[LinkError], None]
    ) -> VirtualAddress:
        """A session with `peer` through the relay that `address` names."""
        name, where = text.split_relay(address)
        try:
            relay = PeerId.parse(name)
        except IdentityError as error:
            raise AddressError(f"{address!r}: {error}") from None
        if relay in (peer, self._endpoint.local):
            raise AddressError(f"{address!r}: a relay stands between two others")
        try:
            link = await self._endpoint.connect(relay, [where])
        except LatticaError as error:
            raise AddressError(f"{address}: {error}") from error
        if not grants.allows(link.remote.scopes, grants.RELAY):
            raise AddressError(f"{address}: the mesh has not granted that peer to relay")
        leg = self._legs.find(relay)
        if leg is None or self._tasks is None:
            raise AddressError(f"{address}: the relay is itself reached through a relay")
        session = os.urandom(SESSION)
        virtual = self._path.open(session, leg, address)
        self._opened[virtual] = (relay, session)
        # Frames follow at once: the relay keeps them until it has read the request.
        self._tasks.start_soon(self._request, virtual, peer, failed)
        return virtual

    def abandon(self, address: VirtualAddress) -> None:
        """A session that was opened is not used after all."""
        self._path.end(address)
        self._released(address)

    # ------------------------------------------------------------------ inside

    async def _request(
        self, address: VirtualAddress, peer: PeerId, failed: Callable[[LinkError], None]
    ) -> None:
        relay, session = self._opened[address]
        client = self._rpc.client(relay, ReachService, SERVICE, timeout=self._config.call_timeout)
        try:
            await client.open(Opening(session, peer))
        except LatticaError as error:
            self._opened.pop(address, None)
            self._path.end(address)
            failed(RelayError(f"the relay {relay.short} does not lead there: {error}"))

    def _released(self, address: VirtualAddress) -> None:
        opened = self._opened.pop(address, None)
        if opened is not None and self._tasks is not None:
            self._tasks.start_soon(self._close, *opened)

    async def _close(self, relay: PeerId, session: bytes) -> None:
        if self._legs.find(relay) is None:
            return  # it ends with the link, or by itself
        timeout = self._config.call_timeout
        client = self._rpc.client(relay, ReachService, SERVICE, timeout=timeout)
        with anyio.move_on_after(timeout):
            try:
                await client.close(session)
            except LatticaError as error:
                log.debug("a relay session ends by itself: %s", error)
