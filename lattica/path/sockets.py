"""What the paths with real sockets share: looking names up, and errors with a cure."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import psutil

from lattica.errors import AddressError, PathError, PortInUseError
from lattica.path import addresses as text

_BACKLOG = 128  # connections that wait to be accepted

Physical = tuple[Any, ...]  # what the socket module calls an address


def bind(address: str, kind: socket.SocketKind) -> socket.socket:
    """A new non-blocking socket on `address`, which is `host:port`. A stream socket listens.

    Raises:
        AddressError: `address` is not an address of this machine.
        PortInUseError: another process holds the port.
    """
    host, port = text.split(address)
    try:
        family, kind, protocol, _, physical = socket.getaddrinfo(
            host, port, type=kind, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise AddressError(f"{address!r} does not resolve: {error}") from None
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        if kind == socket.SOCK_STREAM:  # else a port is held for a minute by what has ended
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(physical)
        if kind == socket.SOCK_STREAM:
            sock.listen(_BACKLOG)  # from here on nobody else can have the port
    except OSError as error:
        sock.close()
        name = "TCP" if kind == socket.SOCK_STREAM else "UDP"
        raise _bind_error(error, address, f"{name} port {port}") from None
    return sock


async def look_up(
    address: str, kind: socket.SocketKind, family: int = socket.AF_UNSPEC
) -> tuple[int, Physical]:
    """The family and the socket address of `host:port`. Numbers never wait.

    Raises:
        AddressError: not of that form, or the name does not resolve.
    """
    host, port = text.split(address)
    if port == 0:
        raise AddressError(f"{address!r}: port 0 cannot be dialled")
    flags = socket.AI_V4MAPPED if family == socket.AF_INET6 else 0
    try:
        try:
            found = socket.getaddrinfo(
                host, port, family=family, type=kind, flags=flags | socket.AI_NUMERICHOST
            )
        except socket.gaierror:
            # The dial that asks has a deadline.
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, family=family, type=kind, flags=flags
            )
    except (OSError, UnicodeError) as error:
        raise AddressError(f"{address!r} does not resolve: {error}") from None
    return found[0][0], found[0][4]


def reachable(bound: Physical, family: int) -> tuple[str, ...]:
    """The bound address as `host:port`, or every address of the machine if bound to all."""
    host, port = bound[:2]
    if host not in ("0.0.0.0", "::"):
        return (text.join(host, port),)
    return tuple(text.join(each, port) for each in _machine_addresses(family))


def loopback_mtu(default: int) -> int:
    """The smallest of the machine's loopback interfaces."""
    loopback = {
        name
        for name, entries in psutil.net_if_addrs().items()
        if any(text.is_loopback(entry.address) for entry in entries)
    }
    found = psutil.net_if_stats()
    return min((found[name].mtu for name in loopback if name in found), default=default)


def _bind_error(error: OSError, address: str, port: str) -> PathError:
    if error.errno == errno.EADDRINUSE:
        return PortInUseError(
            f"{port} is held by another process; choose another, or 0 for any free one"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return AddressError(f"{address!r} is not an address of this machine")
    if error.errno == errno.EACCES:
        return PathError(f"no permission to use {port}; choose one above 1023")
    return PathError(f"cannot bind {address!r}: {error}")


def _machine_addresses(family: int) -> list[str]:
    """Addresses others may try: those of the network first, loopback last."""
    found = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET
        or (family == socket.AF_INET6 == entry.family and not entry.address.startswith("fe80"))
    ]
    return sorted(dict.fromkeys(found), key=text.is_loopback)
