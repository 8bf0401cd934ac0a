"""Congestion control for aioquic's connections, registered with its pluggable interface."""

from __future__ import annotations

from aioquic.quic.congestion.base import register_congestion_control
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.packet_builder import QuicSentPacket

NAME = "lattica"


class BoundedReno(RenoCongestionControl):
    """Reno whose window neither outgrows the receiver's socket buffer nor grows unused.

    aioquic's own grows with every acknowledged packet, also while the application and not
    the window limits what is in flight (RFC 9002 §7.8): the first large burst after a
    quiet time would overrun the buffers, and every small call behind it would wait.
    """

    limit: int = 16 * 1024 * 1024  # bytes

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        """Grow only a window that is used, and not beyond the limit."""
        if self.bytes_in_flight * 2 < self.congestion_window:
            self.bytes_in_flight -= packet.sent_bytes
            return
        super().on_packet_acked(now=now, packet=packet)
        self.congestion_window = min(self.congestion_window, self.limit)


register_congestion_control(NAME, BoundedReno)
