"""The home network that a peer is in: its router's ports, and members of the mesh nearby."""

from __future__ import annotations

import contextlib
import logging

import anyio
import anyio.abc

from lattica.clock import Clock
from lattica.dht import Dht
from lattica.errors import LatticaError
from lattica.identity.keys import PeerId
from lattica.identity.tickets import Contact
from lattica.link.endpoint import Endpoint
from lattica.path import addresses as address_text
from lattica.path.lan import LanDiscovery
from lattica.path.portmap import PortMapper
from lattica.peer.options import PeerOptions
from lattica.peer.sockets import everywhere, ports
from lattica.reach.reach import Reach

log = logging.getLogger("lattica.peer")


async def map_ports(
    stack: contextlib.AsyncExitStack, options: PeerOptions, endpoint: Endpoint, reach: Reach
) -> PortMapper | None:
    """Have the router let others in, until `stack` ends; None where there is none to ask."""
    if not options.map_ports or reach.candidates.is_quiet:
        return None
    udp, tcp = ports(endpoint.addresses)
    host = address_text.split(options.listen or everywhere())[0]
    host = "0.0.0.0" if host == "::" else host  # routers map IPv4 only
    mapper = PortMapper(
        port=udp,
        host=host,
        tcp_port=tcp,
        on_change=reach.mapped,
        config=options.config.port_map,
    )
    await stack.enter_async_context(mapper)
    reach.woke = mapper.ask_anew
    return mapper


class Vicinity:
    """Members of the mesh on the local network: found, told where this peer is, and met."""

    def __init__(
        self, endpoint: Endpoint, dht: Dht, tasks: anyio.abc.TaskGroup, clock: Clock
    ) -> None:
        """Those found are met in tasks of `tasks`."""
        self._endpoint = endpoint
        self._dht = dht
        self._tasks = tasks
        self._clock = clock

    async def look_around(
        self, stack: contextlib.AsyncExitStack, options: PeerOptions, reach: Reach
    ) -> LanDiscovery | None:
        """Find and be found until `stack` ends; None where nobody is to be."""
        if not options.lan or reach.candidates.is_quiet:
            return None
        return await stack.enter_async_context(
            LanDiscovery(
                self._endpoint.local,
                self._endpoint.membership.mesh,
                lambda: self._endpoint.addresses,
                self._found,
                clock=self._clock,
                config=options.config.lan,
            )
        )

    def _found(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        if peer != self._endpoint.local:
            self._endpoint.learn(peer, addresses)
            self._tasks.start_soon(self._meet, Contact(peer, addresses))

    async def _meet(self, contact: Contact) -> None:
        """Know a neighbour as the DHT knows others."""
        if self._endpoint.find(contact.peer) is None:
            try:
                await self._dht.bootstrap([contact])
            except LatticaError as error:
                log.info("the neighbour %s does not answer: %s", contact.peer.short, error)
