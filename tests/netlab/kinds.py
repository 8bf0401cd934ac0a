"""The kinds of sites, from the public host to the network that blocks UDP."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from tests.netlab.nat import Dependence, Ports, Translation

_ANY = Dependence.ENDPOINT_INDEPENDENT
_ADDRESS = Dependence.ADDRESS
_BOTH = Dependence.ADDRESS_AND_PORT


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What a site's network lets out at all."""

    udp: bool = True
    tcp_ports: frozenset[int] | None = None  # of the remote; None: all


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """How a site is joined to the internet, and how an outsider would classify it."""

    home: Translation | None = None
    carrier: Translation | None = None  # a second NAT between the home and the internet
    firewall: Dependence | None = None  # what it filters by; hosts have public addresses
    policy: Policy = Policy()

    @property
    def mapping(self) -> Dependence:
        """The most dependent mapping on the way out."""
        layers = [each.mapping for each in (self.home, self.carrier) if each is not None]
        return max(layers, key=_STRICTNESS.index, default=_ANY)

    @property
    def filtering(self) -> Dependence:
        """The most dependent filter on the way in."""
        layers = [each.filtering for each in (self.home, self.carrier) if each is not None]
        if self.firewall is not None:
            layers.append(self.firewall)
        return max(layers, key=_STRICTNESS.index, default=_ANY)

    @property
    def ports(self) -> Ports:
        """Allocation as seen from outside."""
        outermost = self.carrier or self.home
        return Ports.PRESERVE if outermost is None else outermost.ports


_STRICTNESS = [_ANY, _ADDRESS, _BOTH]
_HOME = Translation(mapping=_ANY, filtering=_BOTH, ports=Ports.PRESERVE)


def _symmetric(ports: Ports, filtering: Dependence = _BOTH) -> Kind:
    return Kind(home=Translation(mapping=_BOTH, filtering=filtering, ports=ports))


PUBLIC = "public"
FULL_CONE = "full-cone"
ADDRESS_RESTRICTED = "address-restricted"
PORT_RESTRICTED = "port-restricted"
PORT_RESTRICTED_RANDOM = "port-restricted-random"
SYMMETRIC_OPEN = "symmetric-open"
ADDRESS_DEPENDENT = "address-dependent"
SYMMETRIC_RANDOM = "symmetric-random"
SYMMETRIC_SEQUENTIAL = "symmetric-sequential"
SYMMETRIC_BLOCK = "symmetric-block"
CARRIER_HOME = "carrier-home"
CARRIER_SYMMETRIC_HOME = "carrier-symmetric-home"
FIREWALL = "firewall"
UDP_BLOCKED = "udp-blocked"

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        PUBLIC: Kind(),
        FULL_CONE: Kind(home=Translation(filtering=_ANY, hairpin=True)),
        ADDRESS_RESTRICTED: Kind(home=Translation(filtering=_ADDRESS, hairpin=True)),
        PORT_RESTRICTED: Kind(home=_HOME),
        PORT_RESTRICTED_RANDOM: Kind(home=Translation(filtering=_BOTH, ports=Ports.RANDOM)),
        SYMMETRIC_OPEN: _symmetric(Ports.RANDOM, filtering=_ANY),
        ADDRESS_DEPENDENT: Kind(home=Translation(mapping=_ADDRESS, ports=Ports.RANDOM)),
        SYMMETRIC_RANDOM: _symmetric(Ports.RANDOM),
        SYMMETRIC_SEQUENTIAL: _symmetric(Ports.SEQUENTIAL),
        SYMMETRIC_BLOCK: _symmetric(Ports.BLOCK),
        # RFC 6888, REQ-1 and REQ-7: endpoint-independent mapping and filtering, and hairpins.
        CARRIER_HOME: Kind(
            home=_HOME,
            carrier=Translation(filtering=_ANY, ports=Ports.RANDOM, hairpin=True),
        ),
        CARRIER_SYMMETRIC_HOME: Kind(
            home=_HOME, carrier=Translation(mapping=_BOTH, ports=Ports.RANDOM)
        ),
        FIREWALL: Kind(firewall=_BOTH),
        UDP_BLOCKED: Kind(home=_HOME, policy=Policy(udp=False)),
    }
)

# Not one of the fourteen: the harsher form of the last.
TCP_443_ONLY = Kind(home=_HOME, policy=Policy(udp=False, tcp_ports=frozenset({443})))
