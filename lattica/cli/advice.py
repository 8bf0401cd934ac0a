"""What a peer's network is like and what would make it better, in a person's words. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from lattica.path.scopes import Scope, scope_of
from lattica.reach.report import Filtering, Mapping, NatReport, Ports, public_endpoint

Level = Literal["ok", "better", "bad"]


class RelayFinding(msgspec.Struct, frozen=True, kw_only=True):
    """A relay that keeps this peer reachable."""

    name: str
    peer: str
    address: str
    rtt_ms: float


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """What a running peer knows of its network."""

    report: NatReport
    bound: list[str]  # its sockets' addresses
    published: list[str]  # what others are told
    is_quiet: bool  # bound to this machine only
    relays: list[RelayFinding]
    is_relay: bool
    relay_sessions: int
    mapped: list[str]  # addresses that the router keeps open for it
    port_mapping: str  # how that stands; "" if it is off
    links: dict[str, int]  # open ones, by the kind of their path
    peers: int


class Finding(msgspec.Struct, frozen=True):
    """One line of the doctor's."""

    level: Level
    what: str
    cure: str = ""  # what to do about it; "" if nothing needs to be done


def advise(network: Network) -> list[Finding]:
    """Everything worth saying, in the order in which a person would want it."""
    if network.is_quiet:
        return [
            Finding(
                "bad",
                "this peer listens on this machine only, so no other machine can reach it",
                "start it with --listen 0.0.0.0:0, or [::]:0 for IPv6 as well",
            )
        ]
    return [
        *_udp(network),
        *_mapping(network),
        *_filtering(network),
        *_ports(network),
        *_ipv6(network),
        *_relays(network),
        *_links(network),
    ]


def _udp(network: Network) -> Iterator[Finding]:
    report = network.report
    if report.udp is False:
        yield Finding(
            "bad",
            "UDP does not pass here; links go by TCP or over relays, which is slower",
            "allow UDP to the outside in the firewall, at least to the ports of your other peers",
        )
    elif report.udp is None:
        yield Finding(
            "better",
            "nobody outside has been reached by UDP yet, so little is known of this network",
            "link to a peer elsewhere (lattica ping PEER), then ask again",
        )
    else:
        where = ", ".join(report.public[:2])
        yield Finding("ok", f"UDP passes; others see this peer at {where}")


def _mapping(network: Network) -> Iterator[Finding]:
    report = network.report
    if report.udp is False:
        return
    if report.mapping is Mapping.NONE:
        yield Finding("ok", "no router translates addresses: others see this machine's own")
    elif report.mapping is Mapping.INDEPENDENT:
        yield Finding(
            "ok",
            "the router shows one address to everybody: direct with nearly all others",
        )
    elif report.mapping is Mapping.DEPENDENT and report.ports is Ports.SEQUENTIAL:
        yield Finding(
            "better",
            "the router shows another port to each peer, one after the other (symmetric NAT): "
            "direct with most others, by foreseeing the port",
            _OPEN_A_PORT,
        )
    elif report.mapping is Mapping.DEPENDENT and report.ports is Ports.BLOCK:
        yield Finding(
            "better",
            f"the provider shows another port to each peer, out of a few hundred near {report.low} "
            "(carrier NAT): direct with most others, by trying those ports",
            "ask the provider for a public IPv4 address, or use IPv6",
        )
    elif report.mapping is Mapping.DEPENDENT:
        yield Finding(
            "better",
            "the router shows another random port to each peer (symmetric NAT): direct with most "
            "others after some seconds of guessing, relayed with those whose router does the same",
            _OPEN_A_PORT,
        )
    elif report.udp:
        yield Finding(
            "better",
            "only one peer outside has looked at this network, which is too few to judge it",
            "wait until there are links to two peers with public addresses",
        )


def _filtering(network: Network) -> Iterator[Finding]:
    report = network.report
    if report.udp is False:
        return
    if report.filtering is Filtering.OPEN:
        yield Finding("ok", "strangers can reach this peer directly")
    elif report.filtering is Filtering.ADDRESS:
        yield Finding("ok", "packets come in from hosts that this peer has sent to, from any port")
    elif report.mapping is Mapping.NONE and report.udp:
        yield Finding(
            "better",
            "no stranger has come in yet: perhaps a firewall lets only answers in",
            f"allow incoming UDP to port {_port(network)} in the firewall",
        )


def _ports(network: Network) -> Iterator[Finding]:
    if network.mapped:
        yield Finding("ok", f"the router keeps a port open: {', '.join(network.mapped)}")
        return
    is_translated = network.report.mapping in (Mapping.INDEPENDENT, Mapping.DEPENDENT)
    if not is_translated or network.report.filtering is Filtering.OPEN:
        return
    if not network.port_mapping:
        yield Finding(
            "better",
            "the router is not asked to keep a port open",
            "start without --no-port-mapping",
        )
    else:
        yield Finding("better", f"no port is mapped: {network.port_mapping}", _OPEN_A_PORT)


def _ipv6(network: Network) -> Iterator[Finding]:
    hosts = [each for each in map(public_endpoint, network.bound) if each is not None]
    if any(":" in host for host, _ in hosts):
        yield Finding("ok", "IPv6 is there: direct with peers that have it too")
    elif network.report.mapping is Mapping.DEPENDENT or network.report.udp is False:
        yield Finding(
            "better",
            "there is no IPv6 address here that others can reach",
            "enable IPv6 on the router, if the provider has it: it needs no translation",
        )


def _relays(network: Network) -> Iterator[Finding]:
    if network.is_relay:
        count = network.relay_sessions
        yield Finding("ok", f"this peer relays for others: {count} sessions now")
        return
    if network.relays:
        told = ", ".join(f"{each.name} ({each.rtt_ms:.0f} ms)" for each in network.relays)
        level: Level = "ok" if len(network.relays) > 1 else "better"
        yield Finding(
            level,
            f"reachable for everybody through {told}",
            "" if level == "ok" else "run one more peer with --relay where strangers reach it",
        )
    else:
        can_be_reached = network.report.filtering is Filtering.OPEN or network.mapped
        yield Finding(
            "better" if can_be_reached else "bad",
            "no relay keeps this peer reachable",
            "run a peer with --relay on a machine with a public address, such as a small server",
        )


def _links(network: Network) -> Iterator[Finding]:
    if network.links:
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(network.links.items()))
        yield Finding("ok", f"links now: {told}")
    elif network.peers > 1:
        yield Finding("bad", "there are other peers, and no link to any", "lattica ping PEER")


def _port(network: Network) -> int:
    for address in network.bound:
        if scope_of(address.rpartition(":")[0].strip("[]")) is not Scope.NOBODY:
            return int(address.rpartition(":")[2])
    return 0


_OPEN_A_PORT = (
    "switch on UPnP or NAT-PMP on the router, or forward this peer's UDP port there by hand"
)
