"""The engine over aioquic's sans-IO connection.

Everything that knows aioquic's names is here, its few private ones included: each of
those is commented with what the public API lacks.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO, cast

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import CipherSuite

from lattica.link import congestion, header
from lattica.link.aioquic_connection import AioquicConnection
from lattica.link.engine import EngineConfig, EngineSink, EngineStats
from lattica.link.outbox import Chunk
from lattica.link.secrets import SecretsLog
from lattica.link.streams import WaitingStreams
from lattica.path.interface import VirtualAddress

if TYPE_CHECKING:
    from lattica.link.qlog import Qlog

ALPN = "lattica"
MAX_REASON = 200  # bytes of a close reason; it has to fit one packet
_AFTER = 1e-6  # seconds between what a timer is for and the timer
_LIVE_STREAMS = 1024  # of ours in aioquic at once: it walks over all of them for each packet

# aioquic warns about every malformed packet: a stranger could fill the log.
logging.getLogger("quic").setLevel(logging.ERROR)


class AioquicEngine:
    """See `lattica.link.engine.Engine`."""

    name = "aioquic"
    can_grow = True

    def __init__(
        self,
        config: EngineConfig,
        *,
        original_destination: bytes | None = None,
        retry_source: bytes | None = None,
    ) -> None:
        """See `lattica.link.engine.EngineMaker`."""
        self._secrets = SecretsLog()
        self._max_unordered = config.max_unordered
        self._qlog: Qlog | None = None
        if config.qlog is not None:
            from lattica.link.qlog import Qlog

            self._qlog = Qlog(config.qlog)
        self._connection = AioquicConnection(
            configuration=QuicConfiguration(
                alpn_protocols=[ALPN],
                certificate=config.certificate.certificate,
                # Both hash with SHA-256, so there is one transcript to hash.
                cipher_suites=[
                    CipherSuite.AES_128_GCM_SHA256,
                    CipherSuite.CHACHA20_POLY1305_SHA256,
                ],
                congestion_control_algorithm=congestion.NAMES[config.congestion],
                connection_id_length=header.CONNECTION_ID,
                idle_timeout=config.idle_timeout,
                is_client=config.is_client,
                max_data=config.max_data,
                max_datagram_size=config.datagram,
                max_stream_data=config.max_stream_data,
                quic_logger=self._qlog,
                private_key=config.certificate.key,
                secrets_log_file=cast(TextIO, self._secrets),
                supported_versions=[header.VERSION_1],
                verify_mode=ssl.CERT_NONE,  # the proof on stream 0 authenticates both ends
            ),
            original_destination_connection_id=original_destination,
            retry_source_connection_id=retry_source,
        )
        # We never migrate: spare connection ids cost packets, memory and look-ups.
        self._connection._local_active_connection_id_limit = 2
        # No setting exists for how many streams the other end may open.
        for limit in (
            self._connection._local_max_streams_bidi,
            self._connection._local_max_streams_uni,
        ):
            limit.value = limit.sent = config.max_streams
        self._control = congestion.install(self._connection, config.window)
        # Handshake packets are padded to the largest datagram (RFC 9000 §14.1 needs 1,200 bytes),
        # and read byte by byte at the other end: 1.5 ms for one of loopback's size.
        self._datagram = config.datagram
        self._is_established = self._has_grown = False
        self._connection._max_datagram_size = min(config.datagram, header.MIN_INITIAL)
        first = 0 if config.is_client else 1
        self._next_id = {False: first, True: first + 2}
        self._waiting = WaitingStreams()  # for fewer live ones, or for the other end
        self._delivered = 0
        self._handed = 0  # bytes given to aioquic's streams
        self._is_closed = False
        self._ids = [self._connection.host_cid]
        if original_destination is not None:
            self._ids.append(retry_source or original_destination)

    @property
    def connection_ids(self) -> Sequence[bytes]:
        return tuple(self._ids)

    @property
    def rtt(self) -> float:
        loss = self._connection._loss  # the estimate has no public name
        return float(loss._rtt_smoothed) if loss._rtt_initialized else 0.0

    def statistics(self) -> EngineStats:
        loss = self._connection._loss
        return EngineStats(
            rtt=self.rtt,
            rtt_min=float(loss._rtt_min) if loss._rtt_initialized else 0.0,
            window=loss.congestion_window,
            in_flight=loss.bytes_in_flight,
            unsent=self.unsent(),
            datagram=self._datagram,
            streams=len(self._connection._streams) + len(self._waiting),
            rtt_latest=float(loss._rtt_latest),
            packets_lost=self._control.packets_lost,
        )

    def unsent(self) -> int:
        # Flow control counts each byte of the streams when it is sent first.
        sent = self._connection._remote_max_data_used
        return self._waiting.size + max(0, self._handed - sent)

    @property
    def datagram(self) -> int:
        return self._connection._max_datagram_size

    def set_datagram(self, size: int) -> None:
        self._datagram = size
        if self._has_grown:
            self._connection._max_datagram_size = size  # fixed at first in the public API
        self._control.set_datagram(size)

    def connect(self, address: VirtualAddress, now: float) -> None:
        self._connection.connect(address, now)

    def receive(self, datagram: bytes, address: VirtualAddress, now: float) -> bool:
        connection = self._connection
        # The idle deadline is set anew by every packet that decrypts, and by nothing else.
        before = connection._close_at
        first = before is None
        try:
            connection.receive_datagram(datagram, address, now)
        except Exception as error:  # noqa: BLE001  (a stranger's bytes must not end the loop)
            connection.close(
                error_code=QuicErrorCode.INTERNAL_ERROR,
                frame_type=0,
                reason_phrase=f"cannot parse a packet: {type(error).__name__}"[:MAX_REASON],
            )
        # Arrived but not in order: what flow control counts, less what was handed on.
        if connection._local_max_data.used - self._delivered > self._max_unordered:
            self._bound_unordered()
        return not first and connection._close_at is not before

    def receive_many(self, datagrams: Sequence[bytes], address: VirtualAddress, now: float) -> bool:
        is_authentic = False
        for datagram in datagrams:
            is_authentic |= self.receive(datagram, address, now)
        return is_authentic

    def drain(self, sink: EngineSink) -> None:
        connection = self._connection
        next_event = connection.next_event
        while (event := next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                self._delivered += len(event.data)
                sink.stream_data(event.stream_id, event.data, event.end_stream)
            elif isinstance(event, events.HandshakeCompleted):
                self._is_established = True
                sink.handshake_done()
            elif isinstance(event, events.ConnectionIdIssued):
                sink.connection_id_added(event.connection_id)
            elif isinstance(event, events.ConnectionIdRetired):
                sink.connection_id_removed(event.connection_id)
            elif isinstance(event, events.StreamReset):
                sink.stream_reset(event.stream_id, event.error_code)
            elif isinstance(event, events.StopSendingReceived):
                self._forget_unsent(event.stream_id)  # aioquic has reset it
                sink.stream_stopped(event.stream_id, event.error_code)
        # The event for a close comes only when the draining period is over; calls in
        # flight want to know at once.
        end = connection._close_event
        if end is not None and not self._is_closed:
            self._is_closed = True
            is_application = end.frame_type is None
            sink.closed(end.error_code if is_application else None, end.reason_phrase)

    def datagrams(self, now: float) -> list[bytes]:
        self._admit()
        if not self._connection._network_paths:
            return []  # closed before the first packet
        datagrams = [data for data, _ in self._connection.datagrams_to_send(now)]
        self._control.flushed(now, is_paced=self._connection._pacing_at is not None)
        if self._is_established and not self._has_grown:
            # The flight that ends the handshake is padded as well.
            self._has_grown = True
            self._connection._max_datagram_size = self._datagram
        return datagrams

    def timer(self) -> float | None:
        if self._connection._close_at is None:
            return None
        at = self._connection.get_timer()
        # An acknowledgement that is due now is sent only after now while the rate holds
        # packets back: on a clock that stands still in between, the timer would fire for ever.
        return None if at is None else at + _AFTER

    def handle_timer(self, now: float) -> None:
        self._connection.handle_timer(now)

    def next_stream_id(self, *, unidirectional: bool) -> int:
        stream_id = self._next_id[unidirectional]
        self._next_id[unidirectional] += 4
        is_first = not self._waiting
        self._waiting.add(stream_id)
        if is_first:  # else there was no room a moment ago
            self._admit()
        return stream_id

    def send(self, stream_id: int, data: Chunk, end: bool) -> bool:
        waiting = self._waiting.get(stream_id)
        if waiting is not None:
            return self._waiting.write(waiting, data, end)
        try:
            # It copies any buffer of bytes, though it says `bytes`.
            self._connection.send_stream_data(stream_id, cast(bytes, data), end)
        except (ValueError, RuntimeError):
            return False  # finished, reset or stopped meanwhile
        self._handed += len(data)
        return True

    def reset_stream(self, stream_id: int, code: int) -> None:
        waiting = self._waiting.get(stream_id)
        if waiting is not None:
            self._waiting.give_up(waiting, code)
            return
        try:
            self._connection.reset_stream(stream_id, code)
        except ValueError:
            return  # not ours to send on
        self._forget_unsent(stream_id)

    def stop_stream(self, stream_id: int, code: int) -> None:
        waiting = self._waiting.get(stream_id)
        if waiting is not None:
            waiting.stop = code
            return
        try:
            self._connection.stop_stream(stream_id, code)
        except ValueError:
            return  # finished, or its first packet has not come

    def ping(self) -> None:
        self._connection.send_ping(0)
        # Nor may a full congestion window keep it back (RFC 9002 §7.5): after a blackout the
        # loss probes alone come too late to tell that the other end is there.
        self._connection._probe_pending = True

    def binding(self) -> bytes:
        return self._secrets.binding()

    def finish(self) -> None:
        if self._qlog is not None:
            self._qlog.write()

    def close(self, code: int, reason: str) -> None:
        self._secrets.wipe()
        self._is_closed = True
        text = reason.encode()[:MAX_REASON].decode(errors="ignore")
        self._connection.close(error_code=code, reason_phrase=text)

    # ------------------------------------------------------------------ inside

    def _admit(self) -> None:
        """Tell aioquic of streams in the order of their ids, as others finish.

        It takes a stream below the newest one, that it has not seen, for a finished one. And
        it sends a RESET_STREAM also for a stream that the other end does not allow yet.
        """
        if not self._waiting:
            return
        room = self._room()
        for unidirectional, limit in (
            (False, self._connection._remote_max_streams_bidi),
            (True, self._connection._remote_max_streams_uni),
        ):
            while room > 0:
                item = self._waiting.pop(limit, unidirectional=unidirectional)
                if item is None:
                    break
                room -= 1
                stream_id, waiting = item
                self._connection.send_stream_data(stream_id, b"", False)
                for data, end in waiting.writes:
                    self._connection.send_stream_data(stream_id, data, end)
                    self._handed += len(data)
                if waiting.reset is not None:
                    self._connection.reset_stream(stream_id, waiting.reset)
                if waiting.stop is not None:
                    self.stop_stream(stream_id, waiting.stop)

    def _forget_unsent(self, stream_id: int) -> None:
        """What a stream that was reset has not sent yet will never be sent."""
        stream = self._connection._streams.get(stream_id)
        if stream is not None and stream.sender._reset_error_code is not None:
            sender = stream.sender
            self._handed -= sender._buffer_stop - sender.highest_offset
            sender._buffer_stop = sender.highest_offset
            sender._buffer.clear()

    def _room(self) -> int:
        """How many more streams of ours aioquic may know."""
        streams = self._connection._streams
        if len(streams) < _LIVE_STREAMS // 2:
            return _LIVE_STREAMS // 2
        ours = 0 if self._connection._is_client else 1
        return _LIVE_STREAMS - sum(stream_id & 1 == ours for stream_id in streams)

    def _bound_unordered(self) -> None:
        connection = self._connection
        held = sum(len(stream.receiver._buffer) for stream in connection._streams.values())
        # Streams that were reset leave a difference that holds no memory.
        self._delivered = connection._local_max_data.used - held
        if held > self._max_unordered:
            connection.close(
                error_code=QuicErrorCode.FLOW_CONTROL_ERROR,
                frame_type=0,
                reason_phrase="too much data out of order",
            )
