"""aioquic's connection, with what its settings do not reach."""

from __future__ import annotations

from typing import cast

from aioquic.buffer import size_uint_var
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicFrameType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import Group

# Flags of a STREAM frame's type (RFC 9000 §19.8).
_FIN, _LENGTH, _OFFSET = 0x01, 0x02, 0x04
_FOUR_BYTES = 0x8000_0000  # marks a variable-length integer of 30 bits (RFC 9000 §16)
_SMALL = 16_384  # bytes of a packet; aioquic writes the frames of smaller ones itself


class AioquicConnection(QuicConnection):
    """One key share instead of one for every curve, and packets of up to 64 KiB."""

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        # Two NIST curves and X448 cost more than the whole rest of the key exchange.
        self.tls._supported_groups = [Group.X25519]

    def _write_stream_frame(
        self,
        builder: QuicPacketBuilder,
        space: QuicPacketSpace,
        stream: QuicStream,
        max_offset: int,
    ) -> int:
        """Write a frame of the stream's data; how many bytes of it are sent for the first time.

        aioquic's own writes lengths of two bytes, so at most 16,383. What a packet costs hardly
        depends on its size: on loopback four times the size is nearly three times the rate.
        """
        if self._max_datagram_size <= _SMALL:
            return super()._write_stream_frame(builder, space, stream, max_offset)
        sender, stream_id = stream.sender, cast(int, stream.stream_id)
        offset, before = sender.next_offset, sender.highest_offset
        room = 1 + size_uint_var(stream_id) + size_uint_var(offset) + 4
        frame = sender.get_frame(builder.remaining_flight_space - room, max_offset)
        if frame is None:
            return 0
        size = len(frame.data)
        kind = QuicFrameType.STREAM_BASE | _LENGTH | _OFFSET | (_FIN if frame.fin else 0)
        buffer = builder.start_frame(
            kind,
            capacity=room,
            handler=sender.on_data_delivery,
            handler_args=(frame.offset, frame.offset + size, frame.fin),
        )
        buffer.push_uint_var(stream_id)
        buffer.push_uint_var(frame.offset)
        buffer.push_uint32(size | _FOUR_BYTES)
        buffer.push_bytes(frame.data)
        if self._quic_logger is not None and builder.quic_logger_frames is not None:
            entry = self._quic_logger.encode_stream_frame(frame, stream_id=stream_id)
            builder.quic_logger_frames.append(entry)
        return sender.highest_offset - before
