"""What a peer says about the network it is in; the words are RFC 4787's."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import msgspec

from lattica.errors import AddressError, NatReportError
from lattica.path import addresses as text
from lattica.path.scopes import Scope, scope_of

MAX_PUBLIC = 8  # addresses in one report
MAX_ADDRESS = 64  # characters; the longest IPv6 address with a port has 47
MAX_LIFETIME = 24 * 3600  # seconds

Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=MAX_LIFETIME)]
Address = Annotated[str, msgspec.Meta(max_length=MAX_ADDRESS)]
Addresses = Annotated[tuple[Address, ...], msgspec.Meta(max_length=MAX_PUBLIC)]


class Mapping(Enum):
    """Where one socket is seen from outside (RFC 4787, 4.1)."""

    UNKNOWN = "unknown"
    NONE = "none"  # at its own address: nothing is translated
    INDEPENDENT = "independent"  # at one address, whoever looks
    DEPENDENT = "dependent"  # at another by each remote address, or address and port


class Ports(Enum):
    """How the outside port of a mapping is chosen (RFC 4787, 4.2)."""

    UNKNOWN = "unknown"
    PRESERVED = "preserved"  # the socket's own
    SEQUENTIAL = "sequential"
    BLOCK = "block"  # from a few hundred that are the subscriber's own
    RANDOM = "random"  # in no order that shows


class Filtering(Enum):
    """Whose packets come in (RFC 4787, 5)."""

    UNKNOWN = "unknown"
    OPEN = "open"  # those of strangers too
    ADDRESS = "address"  # those of hosts that were sent to, from any port
    RESTRICTED = "restricted"  # as far as is known, only answers


class NatReport(msgspec.Struct, frozen=True, array_like=True, tag="nat"):
    """A peer's findings about its own network. Later versions may add fields.

    Attributes:
        hairpin: whether peers behind the same address reach each other by it; None: unknown.
        lifetime: the longest silence in seconds that a mapping outlived; 0: unknown.
        udp: whether UDP passes at all; None: unknown.
        public: the `host:port` where others see the peer's main socket: one, or the newest few
            (newest first) if each sees another.
        latest: the port allocated last, as far as is known; 0: unknown.
        low, high: the lowest and the highest port seen of a block; 0: unknown.

    Raises:
        NatReportError: fields contradict each other, or a public address is not one that a
            stranger could send to.
    """

    mapping: Mapping = Mapping.UNKNOWN
    ports: Ports = Ports.UNKNOWN
    filtering: Filtering = Filtering.UNKNOWN
    hairpin: bool | None = None
    lifetime: Seconds = 0
    udp: bool | None = None
    public: Addresses = ()
    latest: Port = 0
    low: Port = 0
    high: Port = 0

    def __post_init__(self) -> None:
        for address in self.public:
            if public_endpoint(address) is None:
                raise NatReportError(
                    f"{address!r} is not a public host:port; the peer that says so must be updated"
                )
        if self.low > self.high or (self.low == 0) != (self.high == 0):
            raise NatReportError(f"ports {self.low} to {self.high} are no block")

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts of the public addresses, newest first, each once."""
        return tuple(dict.fromkeys(text.split(each)[0] for each in self.public))


def public_endpoint(address: str) -> tuple[str, int] | None:
    """Host and port of a `host:port` that everybody can send to; None for other texts."""
    try:
        host, port = text.split(address)
    except AddressError:
        return None
    if not port or text.join(host, port) != address or scope_of(host) is not Scope.EVERYBODY:
        return None
    return host, port


def decode_report(raw: bytes) -> NatReport:
    """A report from MessagePack.

    Raises:
        NatReportError: the bytes are no report, or not one that can be.
    """
    try:
        return msgspec.msgpack.decode(raw, type=NatReport)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NatReportError(f"not a report about a network: {error}") from error
