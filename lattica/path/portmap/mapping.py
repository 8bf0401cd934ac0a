"""What a mapped port is, whichever protocol keeps it."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import msgspec

from lattica.path import addresses as text
from lattica.path.scopes import Scope, scope_of

FOREVER = float("inf")  # the lifetime of a mapping that the gateway keeps until it is removed


class Protocol(Enum):
    """How a gateway is asked."""

    PCP = "pcp"  # RFC 6887
    NAT_PMP = "nat-pmp"  # RFC 6886
    UPNP = "upnp"  # UPnP Internet Gateway Device, versions 1 and 2


class Transport(Enum):
    """Whose port; the value is IP's protocol number."""

    UDP = 17
    TCP = 6


class Want(NamedTuple):
    """A port of this machine that shall be reachable from outside."""

    transport: Transport
    port: int


class Mapping(msgspec.Struct, frozen=True, kw_only=True):
    """A port of this machine, and what it is outside."""

    protocol: Protocol
    want: Want
    host: str  # of the gateway, outside
    port: int  # outside
    lifetime: float  # seconds, as granted; it is renewed long before
    gateway: str

    @property
    def address(self) -> str:
        """For others to dial: `host:port`, `tcp:host:port`."""
        scheme = text.TCP if self.want.transport is Transport.TCP else ""
        return scheme + text.join(self.host, self.port)

    @property
    def scope(self) -> Scope:
        """Who can reach it. Not `EVERYBODY`: another translator stands behind the gateway."""
        return scope_of(self.host)
