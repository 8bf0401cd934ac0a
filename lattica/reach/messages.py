"""What two peers tell each other to find a direct way, and a peer its relay."""

from __future__ import annotations

from typing import Annotated

import msgspec

from lattica.identity.keys import PeerId
from lattica.path.relay import SESSION
from lattica.reach.plan import Punch
from lattica.reach.report import NatReport

SERVICE = "reach"
MAX_ADDRESSES = 12  # of one kind, of one peer
Address = Annotated[str, msgspec.Meta(max_length=262)]
Addresses = Annotated[tuple[Address, ...], msgspec.Meta(max_length=MAX_ADDRESSES)]
SessionId = Annotated[bytes, msgspec.Meta(min_length=SESSION, max_length=SESSION)]


class News(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where one end may be reached now, and what it knows of its network."""

    addresses: Addresses  # direct ones: `host:port`, `tcp:host:port`
    relays: Addresses  # `relay:PEER@ADDRESS`, ready for sessions
    hosts: Addresses  # where others see it, whatever the port and the protocol
    report: NatReport


class Order(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The dialer's call to try now: what each end does."""

    punch: Punch
    news: News  # the dialer's


class Reserved(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A relay will take sessions for the peer that asked."""

    seconds: float
    load: float  # share of what the relay carries at most, 0 to 1
    addresses: Addresses  # where others reach the relay


class Seen(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a relay sees one end of a session, for the other end."""

    hosts: Addresses


class Opening(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A session to be forwarded between the caller and `target`."""

    session: SessionId
    target: PeerId
