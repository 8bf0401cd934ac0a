"""What a path is to the link layer, whatever carries the packets.

QUIC sees one *virtual address* per remote and never a socket's. The path decides for
each packet which *candidate* physical path takes it: today the direct one; punched
and relayed ones join the same list later, and the QUIC connection above goes on.
Implementations: `lattica.path.udp` and `lattica.path.tcp` (sockets), `lattica.path.combined`
(both at once) and `lattica.path.memory` (a seeded network in one process). Everything is
called on the event loop's thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

# RFC 9443: QUIC packets have the fixed bit set. What has not is ours or garbage.
QUIC_FIXED_BIT = 0x40
# First bytes of ours, from a range that RFC 9443 leaves free.
PROBE = 0x05
PROBE_REPLY = 0x06
RELAY = 0x07
OURS = frozenset((PROBE, PROBE_REPLY, RELAY))


class VirtualAddress(NamedTuple):
    """Names a remote to QUIC. Means nothing outside the path that made it."""

    scheme: str
    number: int


class PathStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a path has carried since it began. Sizes in bytes; buffers are 0 where unknown."""

    datagrams_in: int
    bytes_in: int
    reads: int  # system calls that brought something
    datagrams_out: int
    bytes_out: int
    writes: int  # system calls
    queued: int  # waiting for a full send buffer now
    receive_buffer: int  # as granted, not as asked for
    send_buffer: int
    overruns: int  # datagrams lost to a full receive buffer
    coalesced: bool  # one read may bring many datagrams
    segmented: bool  # one write may send many
    dropped: dict[str, int]  # and why


class Receiver(Protocol):
    """What the layer above does with what arrives."""

    def packets_received(self, packets: Sequence[tuple[bytes, VirtualAddress]]) -> None:
        """QUIC datagrams of one wake-up, in the order of arrival."""
        ...

    def probes_received(self, probes: Sequence[tuple[bytes, VirtualAddress]]) -> None:
        """Probes and replies to probes: see `lattica.path.probes`. Not checked yet.

        A carrier also hands on relay frames here; `lattica.path.combined` takes them out.
        """
        ...

    def path_refused(self, address: VirtualAddress) -> None:
        """The network says that nobody listens there. Unauthenticated: a hint only."""
        ...

    def path_too_big(self, address: VirtualAddress, size: int) -> None:
        """This machine will not send datagrams of `size` bytes there."""
        ...


class Path(Protocol):
    """Sends and receives datagrams for one peer."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others may reach this path: `host:port`, `tcp:host:port`."""
        ...

    @property
    def counters(self) -> Counter[str]:
        """What was dropped, and why."""
        ...

    def statistics(self) -> PathStats:
        """Totals, and what the system granted."""
        ...

    def start(self, receiver: Receiver) -> None:
        """Begin to deliver to `receiver`, on the running event loop."""
        ...

    def close(self) -> None:
        """Stop, and free what is held. Idempotent."""
        ...

    async def resolve(self, address: str) -> VirtualAddress:
        """The virtual address for a remote at `host:port` or `tcp:host:port`.

        Raises:
            AddressError: not of that form, or the name does not resolve.
        """
        ...

    def send(self, datagrams: Sequence[bytes], address: VirtualAddress) -> None:
        """Send in order, or drop and count: like UDP, without blocking or errors."""
        ...

    def spray(self, datagram: bytes, addresses: Sequence[str]) -> None:
        """Send one datagram to each `host:port`, as far as the socket takes it at once.

        Nothing is remembered of them: for guesses, of which few are right.
        """
        ...

    def datagram_limit(self, address: VirtualAddress) -> int | None:
        """Largest datagram known to pass, in bytes; None where nothing is known."""
        ...

    def can_probe(self, address: VirtualAddress) -> bool:
        """Whether larger datagrams may be lost there: probes then find what passes."""
        ...

    def window_limit(self, address: VirtualAddress) -> int | None:
        """Most bytes in flight that the remote's socket buffer takes; None where unknown."""
        ...

    def describe(self, address: VirtualAddress) -> str:
        """The physical path used now, for people."""
        ...

    def hold(self, address: VirtualAddress) -> None:
        """Keep the address known while a link uses it."""
        ...

    def release(self, address: VirtualAddress) -> None:
        """The counterpart of `hold`."""
        ...
