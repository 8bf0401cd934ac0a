"""What a link can tell about itself, and the counts that it keeps for it."""

from __future__ import annotations

import msgspec

from lattica.link.engine import Engine


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


def gather(
    engine: Engine,
    meter: Meter,
    *,
    state: str,
    path: str,
    waiting: int,
    age: float,
    silence: float,
    handshake: float,
) -> LinkStatistics:
    """What a link over `engine` tells. `waiting`: bytes that the engine was not given yet."""
    stats = engine.statistics()
    return LinkStatistics(
        state=state,
        engine=engine.name,
        path=path,
        rtt=stats.rtt,
        rtt_min=stats.rtt_min,
        datagram=stats.datagram,
        window=stats.window,
        in_flight=stats.in_flight,
        bytes_in=meter.bytes_in,
        bytes_out=meter.bytes_out,
        packets_in=meter.packets_in,
        packets_out=meter.packets_out,
        packets_lost=stats.packets_lost,
        streams=max(0, stats.streams - 1),
        unsent=stats.unsent + waiting,
        age=age,
        silence=silence,
        handshake=handshake,
    )
