"""The lab in memory: peers' in-memory sockets behind NATs, on whatever clock the loop has.

With `lattica.virtual_loop.VirtualLoop` minutes pass in milliseconds. The real lab
(`tests.netlab.lab`) has the same words for sites, hosts and what happens to them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from lattica.errors import PortInUseError
from lattica.path import addresses as text
from lattica.path.memory import MemoryPath
from tests.netlab.kinds import KINDS, PUBLIC, Kind
from tests.netlab.nat import Packet
from tests.netlab.topology import Site, Topology, conditions

_EPHEMERAL = 40_000


class MemoryLab:
    """Sites and hosts in one process. Make it on the event loop that will run it."""

    def __init__(self, *, seed: int = 0) -> None:
        self.topology = Topology(asyncio.get_running_loop(), seed=seed)

    def site(
        self,
        kind: str | Kind = PUBLIC,
        *,
        behind: Site | None = None,
        lan: str | None = None,
        ipv6: bool = False,
        **link: Any,
    ) -> Site:
        """A new site; `link` as for `conditions`: `delay`, `jitter`, `loss`, `rate`, ….

        `behind` puts it below another site, such as a carrier's (`site.parent`).
        """
        return self.topology.site(
            KINDS[kind] if isinstance(kind, str) else kind,
            behind=behind,
            lan=lan,
            ipv6=ipv6,
            link=conditions(**link),
        )

    def host(self, site: Site | None = None) -> MemoryHost:
        """A new host inside a site; without one, a public host."""
        return MemoryHost(site or self.site(PUBLIC))


class MemoryHost:
    """A host with one inside address (and an IPv6 one where its site has IPv6)."""

    address: str
    address6: str | None
    site: Site

    def __init__(self, site: Site) -> None:
        self.sockets: dict[int, Any] = {}
        self._next_port = _EPHEMERAL
        self._join(site)

    def path(self, port: int = 0, *, ipv6: bool = False) -> MemoryPath:
        """A new peer's path, which sends and receives behind the site's box."""
        port = self._free(port)
        path = MemoryPath(self, text.join(self._address(ipv6), port))  # type: ignore[arg-type]
        self.sockets[port] = path
        return path

    def socket(self, port: int = 0) -> MemorySocket:
        """A plain datagram socket."""
        port = self._free(port)
        self.sockets[port] = made = MemorySocket(self, (self.address, port))
        return made

    def move(self, site: Site) -> None:
        """Go to another site, with the sockets: they get the new inside address."""
        self._leave()
        self._join(site)
        for port, each in self.sockets.items():
            if isinstance(each, MemorySocket):
                each.address = (self.address, port)
            else:
                is_ipv6 = each._address.startswith("[")
                each._address = text.join(self.address6 or "::" if is_ipv6 else self.address, port)

    def lose_ipv6(self) -> None:
        """Have no IPv6 address from now on."""
        if self.address6 is not None:
            self.site.remove(self.address6)
            self.address6 = None

    def send(self, packet: Packet, data: bytes) -> None:
        """Put any packet on the wire, also one with a source that is not this host's."""
        self.site.send(packet, data)

    def arrived(self, packet: Packet, data: bytes) -> None:
        """See `topology.Member`."""
        sock = self.sockets.get(packet.target[1])
        if sock is None:
            self.site.counters["no_socket"] += 1
        else:
            sock.arrived(data, text.join(*packet.source))

    def carry(self, datagram: bytes, source: str, target: str) -> None:
        """See `PacketNetwork.carry`: a path of this host sends."""
        if not source.startswith("[::]"):  # else the host has no IPv6 any more
            self.send(Packet(text.split(source), text.split(target)), datagram)

    def leave(self, address: str) -> None:
        """See `PacketNetwork.leave`: a path of this host is closed."""
        self.sockets.pop(text.split(address)[1], None)

    def _join(self, site: Site) -> None:
        self.site = site
        self.address = site.join(self)
        self.address6 = site.join6(self) if site.prefix6 is not None else None

    def _leave(self) -> None:
        self.site.remove(self.address)
        if self.address6 is not None:
            self.site.remove(self.address6)

    def _address(self, ipv6: bool) -> str:
        if not ipv6:
            return self.address
        assert self.address6 is not None, "the site has no IPv6"
        return self.address6

    def _free(self, port: int) -> int:
        if port == 0:
            while self._next_port in self.sockets:
                self._next_port += 1
            port = self._next_port
        if port in self.sockets:
            raise PortInUseError(f"{self.address}:{port} is taken; choose another port")
        return port


class MemorySocket:
    """A datagram socket of a `MemoryHost`."""

    def __init__(self, host: MemoryHost, address: tuple[str, int]) -> None:
        self.address = address
        self.handler: Callable[[bytes, tuple[str, int]], None] | None = None
        self._host = host
        self._inbox: asyncio.Queue[tuple[bytes, tuple[str, int]]] = asyncio.Queue()

    def send(self, data: bytes, target: tuple[str, int]) -> None:
        self._host.send(Packet(self.address, target), data)

    async def receive(self, timeout: float) -> tuple[bytes, tuple[str, int]] | None:
        """The next datagram and its source; None after `timeout` seconds."""
        try:
            return await asyncio.wait_for(self._inbox.get(), timeout)
        except TimeoutError:
            return None

    def arrived(self, data: bytes, source: str) -> None:
        """Called by the host."""
        if self.handler is None:
            self._inbox.put_nowait((data, text.split(source)))
        else:
            self.handler(data, text.split(source))

    def close(self) -> None:
        self._host.leave(text.join(*self.address))
