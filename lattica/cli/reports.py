"""What the commands print, as typed reports: one form for people, one for programs."""

from __future__ import annotations

import msgspec

from lattica.path.interface import PathStats


class PeerReport(msgspec.Struct, frozen=True, kw_only=True):
    """One peer of the mesh, as this peer sees it."""

    name: str
    peer: str
    address: str
    rtt_ms: float | None  # None: no link yet
    is_self: bool
    total: dict[str, float]
    available: dict[str, float]
    labels: dict[str, str]
    actors: int
    scopes: list[str]


class StatusReport(msgspec.Struct, frozen=True, kw_only=True):
    """This peer."""

    name: str
    peer: str
    mesh: str
    home: str
    addresses: list[str]
    links: int
    peers: int
    total: dict[str, float]
    available: dict[str, float]
    actors: int
    documents: dict[str, str]  # open ones, and the digest of what each says
    refused: int  # calls refused for want of a grant
    uptime_s: float
    can_invite: bool
    path: PathStats


class InviteReport(msgspec.Struct, frozen=True, kw_only=True):
    """A ticket for another machine."""

    ticket: str
    expires: float  # seconds since the Unix epoch
    addresses: list[str]
