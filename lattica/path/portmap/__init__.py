"""Ports kept open on the home's router: PCP, NAT-PMP and UPnP. `PortMapper` is the face."""

from lattica.path.portmap.mapper import PortMapper
from lattica.path.portmap.mapping import Mapping, Protocol, Transport, Want
from lattica.path.portmap.network import Network, Route

__all__ = ["Mapping", "Network", "PortMapper", "Protocol", "Route", "Transport", "Want"]
