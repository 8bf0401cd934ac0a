"""aioquic's loss detection, made patient where packets overtake each other.

RFC 9002 §6.1 takes a packet for lost when one sent three later is acknowledged. Where a path
reorders (radio links, several routes), that sends much of the data twice. As the RFC allows,
the thresholds grow each time a packet that was given up turns out to have arrived.
"""

from __future__ import annotations

from bisect import bisect_left

from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace

PACKET_THRESHOLD = 3
MAX_PACKET_THRESHOLD = 1536  # then only time tells
TIME_THRESHOLD = 9 / 8  # round trips
MAX_TIME_THRESHOLD = 2.0
_REMEMBERED = 512  # packets given up last, looked for in acknowledgements


class Recovery(QuicPacketRecovery):
    """Replaces `connection._loss`: aioquic's thresholds are constants of its module."""

    def __init__(self, connection: QuicConnection) -> None:
        """Before the connection's first packet."""
        made = connection._loss
        super().__init__(
            congestion_control_algorithm=connection.configuration.congestion_control_algorithm,
            initial_rtt=made._rtt_initial,
            max_datagram_size=connection._max_datagram_size,
            peer_completed_address_validation=made.peer_completed_address_validation,
            send_probe=made._send_probe,
            logger=made._logger,
            quic_logger=made._quic_logger,
        )
        self.packet_threshold = PACKET_THRESHOLD
        self.time_threshold = TIME_THRESHOLD
        self.spurious = 0  # packets given up that had arrived
        self._given_up: list[int] = []  # of application data, ascending

    def on_ack_received(
        self, *, ack_rangeset: RangeSet, ack_delay: float, now: float, space: QuicPacketSpace
    ) -> None:
        """Look for what was given up too early, then go on as usual."""
        if self._given_up and space.is_application_data:
            self._find_spurious(ack_rangeset)
        super().on_ack_received(
            ack_rangeset=ack_rangeset, ack_delay=ack_delay, now=now, space=space
        )

    def _find_spurious(self, acked: RangeSet) -> None:
        given_up, found = self._given_up, 0
        for numbers in acked:
            if numbers.stop <= given_up[0]:
                continue
            first = bisect_left(given_up, numbers.start)
            last = bisect_left(given_up, numbers.stop)
            if last > first:
                found += last - first
                del given_up[first:last]
                if not given_up:
                    break
        if found:
            self.spurious += found
            self.packet_threshold = min(2 * self.packet_threshold, MAX_PACKET_THRESHOLD)
            self.time_threshold = min(self.time_threshold + 1 / 8, MAX_TIME_THRESHOLD)

    def _detect_loss(self, *, now: float, space: QuicPacketSpace) -> None:
        """RFC 9002 appendix A.10, with this connection's thresholds."""
        rtt = max(self._rtt_latest, self._rtt_smoothed) or self._rtt_initial
        patience = self.time_threshold * rtt
        largest = space.largest_acked_packet
        newest_lost = largest - self.packet_threshold
        lost: list[QuicSentPacket] = []
        oldest_kept: float | None = None
        for number, packet in space.sent_packets.items():
            if number > largest:
                break
            sent = packet.sent_time
            assert sent is not None
            # The sum that sets the timer, not now - patience: rounding would have it fire in vain.
            if number <= newest_lost or sent + patience <= now:
                lost.append(packet)
            elif oldest_kept is None or sent < oldest_kept:
                oldest_kept = sent
        space.loss_time = None if oldest_kept is None else oldest_kept + patience
        if not lost:
            return
        if space.is_application_data:
            self._given_up += [packet.packet_number for packet in lost]
            self._given_up.sort()
            del self._given_up[:-_REMEMBERED]
        self._on_packets_lost(
            now=now,
            packets=lost,
            persistent_congestion=self._in_persistent_congestion(packets=lost),
            space=space,
        )
