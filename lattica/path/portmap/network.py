"""The machine's network as port mapping needs it: the way out, and datagrams to the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from lattica.path.portmap import pcp

_ROUTES = Path("/proc/thread-self/net/route")  # of the namespace that this thread is in
_UP, _HAS_GATEWAY = 0x1, 0x2  # flags of a route
_MAX_ROUTES = 4096  # lines read
_DISCARD = 9  # a port; nothing is sent to it

Receive = Callable[[bytes, tuple[str, int]], None]


class Route(NamedTuple):
    """The way out. Both are IPv4 addresses."""

    gateway: str
    local: str  # ours, as the gateway sees it


class Datagrams(Protocol):
    """An open socket."""

    def send(self, data: bytes, address: tuple[str, int]) -> None:
        """Send, or drop without an error."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class Network(Protocol):
    """What `PortMapper` needs of the machine. Called on the event loop's thread."""

    def route(self) -> Route | None:
        """The way out now; None where there is no gateway. Sends nothing."""
        ...

    async def open(self, local: str, receive: Receive) -> Datagrams:
        """A socket on any port of the address `local`.

        Raises:
            OSError: the address is gone.
        """
        ...

    async def announcements(self, local: str, receive: Receive) -> Datagrams | None:
        """Listen for what gateways tell everybody; None where something else does already."""
        ...


class SystemNetwork:
    """See `Network`. Knows the routes of Linux; elsewhere there is no way out."""

    def route(self) -> Route | None:
        try:
            with _ROUTES.open() as lines:
                text = "".join(line for line, _ in zip(lines, range(_MAX_ROUTES), strict=False))
        except OSError:
            return None
        gateway = default_gateway(text)
        if gateway is None:
            return None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.connect((gateway, _DISCARD))  # for UDP this only chooses an address of ours
            except OSError:
                return None
            return Route(gateway, sock.getsockname()[0])

    async def open(self, local: str, receive: Receive) -> Datagrams:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Receiver(receive), local_addr=(local, 0), family=socket.AF_INET
        )
        return _Socket(transport)

    async def announcements(self, local: str, receive: Receive) -> Datagrams | None:
        group, port = pcp.ANNOUNCEMENTS
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            # Every program on this machine that listens is to hear them, RFC 6886 §3.2.1.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((group, port))
            member = socket.inet_aton(group) + socket.inet_aton(local)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Receiver(receive), sock=sock
            )
        except OSError:
            sock.close()
            return None
        return _Socket(transport)


def default_gateway(routes: str) -> str | None:
    """The gateway of the preferred default route, from the text of Linux' `/proc/net/route`."""
    found: list[tuple[int, str]] = []
    for line in routes.splitlines()[1:]:
        fields = line.split()
        with contextlib.suppress(ValueError, IndexError, struct.error):
            _, destination, gateway, flags, _, _, metric, mask = fields[:8]
            usable = int(flags, 16) & (_UP | _HAS_GATEWAY) == _UP | _HAS_GATEWAY
            if usable and int(destination, 16) == 0 == int(mask, 16):
                packed = int(gateway, 16).to_bytes(4, sys.byteorder)
                found.append((int(metric), socket.inet_ntoa(packed)))
    return min(found)[1] if found else None


class _Receiver(asyncio.DatagramProtocol):
    def __init__(self, receive: Receive) -> None:
        self._receive = receive

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._receive(data, (addr[0], addr[1]))


class _Socket:
    """See `Datagrams`."""

    def __init__(self, transport: asyncio.DatagramTransport) -> None:
        self._transport = transport

    def send(self, data: bytes, address: tuple[str, int]) -> None:
        if not self._transport.is_closing():
            self._transport.sendto(data, address)

    def close(self) -> None:
        self._transport.close()
