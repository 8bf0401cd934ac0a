"""How far an IP address reaches: this machine, a cable, a home, a carrier's network, everywhere.

Python's `ipaddress.is_global` is not used: it counts addresses for documentation and benchmarks
as private, and what matters here is only whether a translator stands between them and others.
"""

from __future__ import annotations

import ipaddress
from enum import Enum

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Scope(Enum):
    """Who can send to an address."""

    NOBODY = "nobody"  # not an address of a host: unspecified, multicast, reserved
    MACHINE = "machine"  # loopback
    CABLE = "cable"  # link-local
    HOME = "home"  # RFC 1918, RFC 4193
    CARRIER = "carrier"  # RFC 6598, RFC 6333: behind a provider's translator
    EVERYBODY = "everybody"


_NETWORKS = tuple(
    (ipaddress.ip_network(network), scope)
    for network, scope in (
        ("0.0.0.0/8", Scope.NOBODY),
        ("224.0.0.0/3", Scope.NOBODY),
        ("127.0.0.0/8", Scope.MACHINE),
        ("169.254.0.0/16", Scope.CABLE),
        ("10.0.0.0/8", Scope.HOME),
        ("172.16.0.0/12", Scope.HOME),
        ("192.168.0.0/16", Scope.HOME),
        ("100.64.0.0/10", Scope.CARRIER),
        ("192.0.0.0/29", Scope.CARRIER),
        ("::/128", Scope.NOBODY),
        ("ff00::/8", Scope.NOBODY),
        ("::1/128", Scope.MACHINE),
        ("fe80::/10", Scope.CABLE),
        ("fc00::/7", Scope.HOME),
    )
)


def scope_of(host: str) -> Scope:
    """The scope of an IP address in text; `NOBODY` for what is none, such as a name."""
    try:
        address: IpAddress = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return Scope.NOBODY
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    for network, scope in _NETWORKS:
        if address.version == network.version and address in network:
            return scope
    return Scope.EVERYBODY
