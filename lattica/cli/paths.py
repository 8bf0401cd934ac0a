"""What kind of way a link's packets take, in a word."""

from __future__ import annotations

from collections.abc import Mapping

from lattica.link.interface import Link
from lattica.path import addresses as text
from lattica.path.scopes import Scope, scope_of

MACHINE, LAN, DIRECT, TCP, RELAY = "this machine", "lan", "direct", "tcp", "relay"


def kind_of(address: str) -> str:
    """The kind of a link's address, as `Link.address` tells it."""
    if text.is_relay(address):
        return RELAY
    scheme, where = text.split_scheme(address)
    if scheme != text.UDP:
        return scheme.rstrip(":")
    host = where.rpartition(":")[0].strip("[]")
    return {
        Scope.MACHINE: MACHINE,
        Scope.HOME: LAN,
        Scope.CABLE: LAN,
        Scope.CARRIER: LAN,
    }.get(scope_of(host), DIRECT)


def path_of(link: Link, names: Mapping[str, str]) -> str:
    """The kind of a link's way; with the relay's name where one stands between.

    `names` are peers' names by their ids.
    """
    kind = kind_of(link.address)
    if kind != RELAY:
        return kind
    relay = text.split_relay(link.address)[0]
    return f"relay via {names.get(relay, relay[:8])}"
