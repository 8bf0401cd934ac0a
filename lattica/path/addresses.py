"""Addresses as people write them: `host:port`, `[v6]:port`."""

from __future__ import annotations

import ipaddress

from lattica.errors import AddressError


def split(address: str) -> tuple[str, int]:
    """The host and port of `address`; the port may be 0.

    Raises:
        AddressError: not of the form host:port.
    """
    host, colon, port = address.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise AddressError(f"{address!r}: write an IPv6 address as [address]:port")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise AddressError(f"{address!r} is not of the form host:port, such as 192.0.2.7:4242")
    return host, int(port)


def join(host: str, port: int) -> str:
    """The text form of a host and port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether `host` is an address of this machine's loopback interface."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
