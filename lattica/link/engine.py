"""What the driver needs of a sans-IO QUIC connection, whichever library provides it.

Datagrams and times go in; datagrams, a timer and events come out. Times are seconds of
the event loop's clock. Stream ids follow RFC 9000 §2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from lattica.link.outbox import Chunk
from lattica.path.interface import VirtualAddress

if TYPE_CHECKING:  # it brings cryptography.x509 along, which `import lattica` has no use for
    from lattica.link.certificate import Certificate


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One connection's settings. Sizes in bytes, times in seconds."""

    is_client: bool
    certificate: Certificate
    datagram: int
    max_datagram: int = 65_535  # no engine's own probing goes further
    window: int = 16 * 1024 * 1024  # in flight at most
    congestion: Literal["wan", "local"] = "wan"  # local: loopback, only buffers bound it
    idle_timeout: float = 60.0  # a backstop: the link watches its own silence
    max_data: int = 16 * 1024 * 1024
    max_stream_data: int = 4 * 1024 * 1024
    max_streams: int = 1024  # open at once, of each kind, by the other end
    qlog: Path | None = None  # where a trace is written when the connection is over
    max_unordered: int = 32 * 1024 * 1024  # held because something before them is missing


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """How a connection does. Sizes in bytes, times in seconds."""

    rtt: float  # smoothed; 0.0 before the first sample
    rtt_min: float
    window: int  # congestion window
    in_flight: int
    unsent: int  # of streams, queued and not sent once
    datagram: int  # largest sent
    streams: int  # open, of both ends, stream 0 included
    rtt_latest: float
    packets_lost: int


class EngineSink(Protocol):
    """Receives a connection's events, in order."""

    def handshake_done(self) -> None:
        """TLS is complete: the binding exists and streams can be used."""
        ...

    def stream_data(self, stream_id: int, data: bytes, end: bool) -> None:
        """Bytes arrived in order."""
        ...

    def stream_reset(self, stream_id: int, code: int) -> None:
        """The sender gave up."""
        ...

    def stream_stopped(self, stream_id: int, code: int) -> None:
        """The receiver wants no more."""
        ...

    def connection_id_added(self, connection_id: bytes) -> None:
        """Packets may now also arrive for this id."""
        ...

    def connection_id_removed(self, connection_id: bytes) -> None:
        """No more packets will arrive for this id."""
        ...

    def closed(self, code: int | None, reason: str) -> None:
        """The other end closed, or broke the protocol. `code` is the application's, if any."""
        ...


class Engine(Protocol):
    """One QUIC connection."""

    def finish(self) -> None:
        """The link is over, nothing more is asked of it: write its trace, if there is one."""
        ...

    @property
    def name(self) -> str:
        """The library, as people and `LATTICA_QUIC` name it."""
        ...

    @property
    def can_grow(self) -> bool:
        """Whether `set_datagram` can also enlarge."""
        ...

    @property
    def connection_ids(self) -> Sequence[bytes]:
        """The ids for which packets arrive at first."""
        ...

    @property
    def rtt(self) -> float:
        """Smoothed round-trip time in seconds; 0.0 before the first sample."""
        ...

    def statistics(self) -> EngineStats:
        """Counters and estimates, for people and for tests."""
        ...

    def unsent(self) -> int:
        """Bytes of streams that wait to be sent a first time. Cheap: asked once a flush."""
        ...

    @property
    def datagram(self) -> int:
        """Bytes of the largest datagram that is sent now. Cheap."""
        ...

    def set_datagram(self, size: int) -> None:
        """From now on send datagrams of at most `size` bytes: the path has changed.

        An engine that cannot grow keeps to `EngineConfig.datagram`; see `statistics`.
        """
        ...

    def connect(self, address: VirtualAddress, now: float) -> None:
        """Start the handshake, as a client."""
        ...

    def receive(self, datagram: bytes, address: VirtualAddress, now: float) -> bool:
        """Take in a datagram; whether it held a packet that only the other end can make."""
        ...

    def receive_many(self, datagrams: Sequence[bytes], address: VirtualAddress, now: float) -> bool:
        """`receive` for the datagrams of one wake-up, in the order of arrival."""
        ...

    def drain(self, sink: EngineSink) -> None:
        """Hand over the events since the last call."""
        ...

    def datagrams(self, now: float) -> list[bytes]:
        """What to send now."""
        ...

    def timer(self) -> float | None:
        """When `handle_timer` wants to be called."""
        ...

    def handle_timer(self, now: float) -> None:
        """The timer fired."""
        ...

    def next_stream_id(self, *, unidirectional: bool) -> int:
        """The id of a new stream of ours. Taken at once."""
        ...

    def send(self, stream_id: int, data: Chunk, end: bool) -> bool:
        """Queue bytes, copied; False if the stream is over and they were dropped."""
        ...

    def reset_stream(self, stream_id: int, code: int) -> None:
        """Give up our sending side. No effect on a stream that is over."""
        ...

    def stop_stream(self, stream_id: int, code: int) -> None:
        """Ask the sender to stop. No effect on a stream that is over."""
        ...

    def ping(self) -> None:
        """Make the other end answer."""
        ...

    def binding(self) -> bytes:
        """32 bytes that only the two ends of this TLS session know. Once: then forgotten."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Tell the other end; `datagrams` then returns the last ones."""
        ...


class EngineMaker(Protocol):
    """Makes connections of one library."""

    name: str
    can_grow: bool

    def __call__(
        self,
        config: EngineConfig,
        *,
        original_destination: bytes | None = None,
        retry_source: bytes | None = None,
    ) -> Engine:
        """A connection.

        A server's needs `original_destination`, the id that the client chose first, and, if
        a Retry came between, `retry_source`, the id that it named.
        """
        ...
