"""What the commands print, as typed reports: one form for people, one for programs."""

from __future__ import annotations

from typing import Any

import msgspec

from lattica.path.interface import PathStats


class PeerReport(msgspec.Struct, frozen=True, kw_only=True):
    """One peer of the mesh, as this peer sees it."""

    name: str
    peer: str
    address: str
    path: str  # direct, lan, tcp, "relay via NAME"; "" without a link
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
    relays: list[str]  # names of those that keep it reachable
    relay_sessions: int | None  # that it forwards; None: it is no relay
    port_mapping: str  # how that stands; "" if it is off


class InviteReport(msgspec.Struct, frozen=True, kw_only=True):
    """A ticket for another machine."""

    ticket: str
    expires: float  # seconds since the Unix epoch
    addresses: list[str]


class ReplyReport(msgspec.Struct, frozen=True, kw_only=True):
    """One ping: its time, or why there is none."""

    ms: float | None
    error: str = ""


class LinkReport(msgspec.Struct, frozen=True, kw_only=True):
    """The link to one peer at one moment."""

    name: str
    peer: str
    path: str
    engine: str
    rtt_ms: float
    rtt_min_ms: float
    datagram: int  # bytes
    window: int  # bytes
    packets_out: int
    packets_lost: int


class PingReport(msgspec.Struct, frozen=True, kw_only=True):
    """The answers to some pings sent at once."""

    replies: list[ReplyReport]
    link: LinkReport | None  # None: it could not be made


class SpeedReport(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a link, and what was seen while it was taken."""

    value: float
    unit: str
    seconds: float
    cpu: float  # share of one core that the measuring peer's process used
    lost: int  # of our packets meanwhile
    sent: int
    link: LinkReport


class ManifestReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one id of the block store names. Sizes in bytes."""

    id: str
    files: int
    name: str  # of the file, if it is one
    size: int
    here: int
    is_pinned: bool
    used: float  # seconds since the Unix epoch


class BlocksReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation on blocks has done. Sizes in bytes."""

    manifests: list[ManifestReport] = []
    path: str = ""  # where the files are
    seconds: float = 0.0  # of a fetch
    held: int = 0  # that a fetch did not have to move
    provided: dict[str, int] = {}  # that came, by peer
    gone: list[str] = []  # manifests that were deleted
    files: int = 0  # deleted
    blocks: int = 0  # found good
    size: int = 0  # of those
    damaged: int = 0
    missing: int = 0


class DocumentReport(msgspec.Struct, frozen=True, kw_only=True):
    """One document, as this peer has it."""

    name: str
    digest: str  # of the content: equal where peers read the same; "" of one that is not open
    updates: dict[str, int]  # by author, each signed and in one chain
    refused: int  # updates, since it was opened
    forks: int = 0  # proofs of authors that said two things in one place
    content: dict[str, Any] = {}  # see `Document.to_dict`; only where asked for


class DocumentsReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of documents."""

    documents: list[DocumentReport]
