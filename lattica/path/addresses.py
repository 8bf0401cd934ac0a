"""Addresses as people write them: `host:port`, `[v6]:port`, `tcp:host:port`, `tls:host:port`.

`relay:PEER@ADDRESS` is a way through the relay PEER, which is itself at ADDRESS.
"""

from __future__ import annotations

import ipaddress

from lattica.errors import AddressError

UDP = "udp:"  # understood, and what an address without a scheme means
TCP = "tcp:"
TLS = "tls:"
RELAY = "relay:"
_IPV6_PREFIX = 56  # bits; what a home is given, RFC 6177


def split_scheme(address: str) -> tuple[str, str]:
    """The scheme, `UDP` or such, and the rest, which `split` takes; a relay's own address."""
    cut = address.strip()
    if cut.startswith(RELAY):
        return RELAY, split_scheme(cut.partition("@")[2])[1]
    for scheme in (UDP, TCP, TLS):
        if cut.lower().startswith(scheme):
            return scheme, cut[len(scheme) :]
    return UDP, cut


def join_relay(peer: str, address: str) -> str:
    """A way through the relay `peer`, which is at `address`."""
    return f"{RELAY}{peer}@{address}"


def split_relay(address: str) -> tuple[str, str]:
    """The relay, in its text form, and where it is.

    Raises:
        AddressError: not of the form relay:PEER@ADDRESS, or through more relays than one.
    """
    peer, at, where = address.strip().removeprefix(RELAY).partition("@")
    if not address.startswith(RELAY) or not at or not peer or where.startswith(RELAY):
        raise AddressError(f"{address!r} is not of the form relay:PEER@host:port")
    return peer, where


def is_stream(address: str) -> bool:
    """Whether it is reached by a connection rather than by datagrams."""
    return split_scheme(address)[0] in (TCP, TLS)


def is_relay(address: str) -> bool:
    """Whether it is a way through a relay."""
    return address.startswith(RELAY)


def strip_scheme(address: str) -> str:
    """The address without its scheme."""
    return split_scheme(address)[1]


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
    if not host.isprintable() or " " in host:  # it goes into requests to proxies as it is
        raise AddressError(f"{address!r}: a host has neither spaces nor control characters")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise AddressError(f"{address!r} is not of the form host:port, such as 192.0.2.7:4242")
    return host, int(port)


def join(host: str, port: int) -> str:
    """The text form of a host and port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def plain(host: str) -> str:
    """An IPv4 address without the dress it wears on a socket that takes both (RFC 4291 §2.5.5)."""
    mapped = host.removeprefix("::ffff:")
    return mapped if "." in mapped else host


def is_loopback(host: str) -> bool:
    """Whether `host` is an address of this machine's loopback interface."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def party(host: str) -> str:
    """What one party can be taken to own: an IPv4 address, or the /56 of an IPv6 one.

    Raises:
        ValueError: not an IP address.
    """
    ip = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip, _IPV6_PREFIX), strict=False))
    return str(ip)


def is_local(address: str) -> bool:
    """Whether a `host:port` is on this machine's loopback interface; False for other texts."""
    return is_loopback(address.rpartition(":")[0].strip("[]"))


def is_remote(host: str) -> bool:
    """Whether packets to `host` leave this machine, as far as its address tells."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return not address.is_loopback
