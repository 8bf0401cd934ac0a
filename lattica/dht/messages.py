"""What the DHT's peers say to each other, and the address hygiene that goes with it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from lattica.identity.signed import Signed
from lattica.identity.tickets import Contact
from lattica.rpc.buffers import Buffer

SERVICE = "dht"
CLAIM = "dht-claim"  # the domain of signed claims
MAX_ADDRESSES = 8  # of one peer; hearsay must not make us dial half the network
MAX_ADDRESS = 128  # characters


class FindReply(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The closest contacts the answering peer knows, and the records it holds."""

    addresses: tuple[str, ...]  # where the answering peer itself can be dialled
    contacts: tuple[Contact, ...]
    records: Buffer  # MessagePack of a tuple of Signed; empty when none was asked for


class PeerAddresses(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The value of a "peer" record: where its author can be dialled, as `host:port`."""

    addresses: tuple[str, ...]


class Claim(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A peer wants a key for itself; travels `Signed`, in the domain `CLAIM`."""

    key: bytes  # 20 bytes
    sequence: int  # the claimant's clock in microseconds; rises with every claim
    length: float  # seconds; 0: it gives the key up


class Lease(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a replica says: who has the key of it. Good for the link that it came over."""

    claim: Signed  # the holder's latest
    held_for: float  # seconds since the holder was first granted it, without a gap
    left: float  # seconds


def clean_addresses(addresses: Iterable[str]) -> tuple[str, ...]:
    """The well-formed `host:port`s among what a peer says, in order, at most 8."""
    kept: dict[str, None] = {}
    for address in addresses:
        if len(kept) == MAX_ADDRESSES:
            break
        if _is_address(address):
            kept[address] = None
    return tuple(kept)


def _is_address(address: str) -> bool:
    host, colon, port = address.rpartition(":")
    return (
        len(address) <= MAX_ADDRESS
        and bool(host and colon)
        and address.isascii()
        and address.isprintable()
        and " " not in address
        and port.isdigit()
        and 0 < int(port) < 65536
    )
