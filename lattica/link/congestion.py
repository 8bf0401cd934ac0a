"""Congestion control for aioquic's connections, registered with its pluggable interface.

Two modes: `wan` models the path (`lattica.link.bbr`) and paces; `local` is for loopback, where
nothing is lost but what overruns the other end's socket buffer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from aioquic.quic.congestion.base import QuicCongestionControl, register_congestion_control
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet_builder import QuicSentPacket

from lattica.link.bbr import Bbr
from lattica.link.delivery import Flow, Sent
from lattica.link.pacing import Pacer
from lattica.link.recovery import Recovery

Mode = Literal["wan", "local"]
NAMES: dict[Mode, str] = {"wan": "lattica-wan", "local": "lattica-local"}


class ModelControl(QuicCongestionControl):
    """Tells the model of the path what happens, and aioquic what the model wants."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self.flow = Flow()
        self.model = Bbr(max_datagram_size)
        self.pacer = Pacer(max_datagram_size)
        self.congestion_window = self.model.window
        self.packets_lost = 0
        self._dry_at: float | None = None  # when there was room for more, and nothing to send

    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        flow, size, now = self.flow, packet.sent_bytes, packet.sent_time
        assert now is not None
        if self._dry_at is not None:
            # What is sent in the same moment was only handed over piece by piece.
            if now > self._dry_at:
                flow.ran_dry()
            self._dry_at = None
        if flow.in_flight == 0 and flow.is_app_limited:
            self.model.on_restart(now)
        # Packets have no field for what a controller wants to remember of them.
        packet.in_flow = flow.sent(size, now)  # type: ignore[attr-defined]
        self.bytes_in_flight = flow.in_flight
        self.pacer.sent(size)

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        self.flow.acked(_sent(packet), now)
        self.bytes_in_flight = self.flow.in_flight

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        """Called once for each acknowledgement, after its packets."""
        sample = self.flow.take_sample(now)
        if sample is None:
            return
        flow, model = self.flow, self.model
        model.on_ack(sample, rtt, flow.in_flight, flow.delivered, now)
        if model.is_probing_rtt:
            flow.ran_dry()  # by intent: its rate is not the path's
        self._publish()

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        flow = self.flow
        for packet in packets:
            self.packets_lost += 1
            sent = _sent(packet)
            flow.gone(sent, is_lost=True)
            self.model.on_lost(sent, flow.lost, now)
        self.bytes_in_flight = flow.in_flight
        self._publish()

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        for packet in packets:
            self.flow.gone(_sent(packet), is_lost=False)
        self.bytes_in_flight = self.flow.in_flight

    def on_persistent_congestion(self) -> None:
        self.model.on_blackout()
        self._publish()

    def set_datagram(self, size: int) -> None:
        """Packets have another size from now on."""
        self.model.set_datagram(size)
        self.pacer.datagram = size
        self._publish()

    def flushed(self, now: float, *, is_paced: bool) -> None:
        """All that was there to send is sent; `is_paced`: the rate is why there is not more."""
        if not is_paced and self.model.window - self.flow.in_flight >= self.model.datagram:
            self._dry_at = now

    def _publish(self) -> None:
        self.congestion_window = self.model.window
        self.pacer.set_rate(self.model.pacing_rate)


class BoundedReno(RenoCongestionControl):
    """Reno whose window neither outgrows the receiver's socket buffer nor grows unused.

    aioquic's own grows with every acknowledged packet, also while the application and not
    the window limits what is in flight (RFC 9002 §7.8): the first large burst after a
    quiet time would overrun the buffers, and every small call behind it would wait.
    """

    limit: int = 16 * 1024 * 1024  # bytes
    packets_lost: int = 0

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        """Grow only a window that is used, and not beyond the limit."""
        if self.bytes_in_flight * 2 < self.congestion_window:
            self.bytes_in_flight -= packet.sent_bytes
            return
        super().on_packet_acked(now=now, packet=packet)
        self.congestion_window = min(self.congestion_window, self.limit)

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        """aioquic keeps no count of them."""
        lost = list(packets)
        self.packets_lost += len(lost)
        super().on_packets_lost(now=now, packets=lost)

    def set_datagram(self, size: int) -> None:
        """Reno's window is in bytes; its steps follow a size given once."""

    def flushed(self, now: float, *, is_paced: bool) -> None:
        """Nothing depends on it."""


def install(connection: QuicConnection, window: int) -> ModelControl | BoundedReno:
    """Finish the controller of a connection that has not sent yet; `window` bounds it, in bytes.

    aioquic makes controller, pacer and loss detection inside, without arguments: the
    controller's bound, the model's pacer and the tolerance for reordering have to go in here.
    """
    recovery = connection._loss = Recovery(connection)
    control = recovery._cc
    if isinstance(control, ModelControl):
        control.model.limit = max(window, control.model.window)
        recovery._pacer = control.pacer  # type: ignore[assignment]  # has what is called of it
    else:
        assert isinstance(control, BoundedReno)
        control.limit = max(window, control.congestion_window)
        # Paced by aioquic's own, small datagrams would leave 16 a millisecond: on loopback what
        # the other end has not read yet is bounded by the window, and nothing lies in between.
        recovery._pacer = Pacer(connection._max_datagram_size)  # type: ignore[assignment]
    return control


def _sent(packet: QuicSentPacket) -> Sent:
    sent: Sent = packet.in_flow  # type: ignore[attr-defined]
    return sent


register_congestion_control(NAMES["wan"], ModelControl)
register_congestion_control(NAMES["local"], BoundedReno)
