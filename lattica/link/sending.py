"""What a link sends: its queues, the engine's packets, and the path that they take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from lattica.link import header
from lattica.link.engine import Engine
from lattica.link.outbox import Outbox, piece
from lattica.link.statistics import Meter
from lattica.link.steering import Steering
from lattica.path.interface import Path, VirtualAddress
from lattica.path.probes import ProbeKeys

MAX_BURST = 256 * 1024  # bytes of data streams that one link sends before others have their turn


class Sending:
    """Times in seconds of the event loop's clock, sizes in bytes.

    Attributes:
        outbox: what the engine was not given yet.
        steering: where packets go, and how large they are, once both ends have its keys.
        hasten: called when `Steering.check` is due sooner.
    """

    __slots__ = ("_address", "_engine", "_meter", "_path", "hasten", "outbox", "steering")

    def __init__(self, engine: Engine, path: Path, address: VirtualAddress, meter: Meter) -> None:
        self._engine = engine
        self._path = path
        self._address = address
        self._meter = meter
        self.outbox = Outbox()
        self.steering: Steering | None = None
        self.hasten: Callable[[float], None] | None = None

    @property
    def address(self) -> VirtualAddress:
        """Where packets go now."""
        return self._address if self.steering is None else self.steering.current

    def steer(
        self, keys: ProbeKeys, *, is_dialer: bool, limit: int, counters: Counter[str]
    ) -> None:
        """Both ends have the keys for probes of the path. See `Steering`."""
        self.steering = Steering(
            self._engine,
            self._path,
            self._address,
            keys,
            is_dialer=is_dialer,
            limit=limit,
            counters=counters,
        )

    def push(self, now: float) -> bool:
        """Send what waits, as far as congestion control and a fair share of the turn allow.

        False: the share is used up, and other links come first.
        """
        engine, outbox = self._engine, self.outbox
        outbox.push_control(engine)
        burst = 0
        size = piece(engine.datagram) if outbox.has_data else 0
        while True:
            if outbox.has_data and engine.unsent() < size:
                burst += outbox.push_data(engine, size)
            datagrams = engine.datagrams(now)
            self.send(datagrams)
            if not outbox.has_data or not datagrams or engine.unsent():
                return True  # what is left waits for acknowledgements, or for the pacer
            if burst >= MAX_BURST:
                return False

    def send(self, datagrams: list[bytes]) -> None:
        """Send packets of the engine."""
        if datagrams:
            self._meter.sent(datagrams)
            steering = self.steering
            if steering is None:
                self._path.send(datagrams, self._address)
                return
            if steering.sent(datagrams) and self.hasten is not None:
                self.hasten(steering.due)
            self._path.send(datagrams, steering.current)

    def send_beat(self, datagram: bytes) -> None:
        """Send a datagram beside QUIC."""
        self._meter.packets_out += 1
        self._meter.bytes_out += len(datagram)
        self._path.send((datagram,), self.address)

    def send_rest(self, now: float) -> list[bytes]:
        """Send what the engine has to say when it closes; what that was."""
        last_words = self._engine.datagrams(now)
        self.send(last_words)
        return last_words

    def too_big(self, size: int, now: float) -> None:
        """This machine does not send datagrams of `size` there: go on with smaller ones."""
        if self.steering is not None:
            self.steering.too_big(size, now)
        elif size > header.MIN_INITIAL:
            self._engine.set_datagram(header.MIN_INITIAL)

    def in_flight(self) -> int:
        """Bytes that the other end has not acknowledged, or was not sent yet."""
        engine = self._engine.statistics()
        return len(self.outbox) + engine.unsent + engine.in_flight
