"""What a link can tell about itself, and the counts that it keeps for it."""

from __future__ import annotations

import msgspec


class LinkStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """How a link does at one moment. Sizes in bytes, times in seconds.

    `packets_*` and `bytes_*` count datagrams as the path carried them, with every
    header; `unsent` is what streams hold that was not sent once.
    """

    state: str  # handshake, proving, proven, open, draining, closed
    engine: str  # aioquic, qh3, memory
    path: str  # where packets go now
    rtt: float  # smoothed; 0.0 before the first sample
    rtt_min: float
    datagram: int  # largest sent
    window: int  # congestion window
    in_flight: int
    bytes_in: int
    bytes_out: int
    packets_in: int
    packets_out: int
    packets_lost: int  # of those sent, as far as the engine knows
    streams: int  # open, of both ends, without the link's own
    unsent: int
    age: float  # since the first packet
    silence: float  # since the other end was last heard
    handshake: float  # from the first packet until both proofs held; 0.0 before

    @property
    def loss(self) -> float:
        """Share of the packets sent that were lost."""
        return self.packets_lost / self.packets_out if self.packets_out else 0.0


class Meter:
    """One link's counts of what its path carried."""

    __slots__ = ("bytes_in", "bytes_out", "packets_in", "packets_out")

    def __init__(self) -> None:
        self.bytes_in = 0
        self.bytes_out = 0
        self.packets_in = 0
        self.packets_out = 0

    def sent(self, datagrams: list[bytes]) -> None:
        """These were handed to the path."""
        self.packets_out += len(datagrams)
        for datagram in datagrams:
            self.bytes_out += len(datagram)
