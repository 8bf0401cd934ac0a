"""The engine over qh3's sans-IO connection, whose packet core is Rust.

After the handshake the core is driven directly: the Python around it costs more for each
packet than the core itself.

What qh3 2.1 does, found by reading and trying it:
- Congestion control is CUBIC with HyStart++, which no setting changes. Its window grows
  also while it is not used, so what is in flight is bounded here. It paces with a token
  bucket of one window; each look for something to send costs a datagram's worth of tokens.
- The largest datagram is fixed by the constructor, and can later be lowered, never raised.
  Its own probing is for clients and knows 1,280, 1,350, 1,452 and 1,472 bytes only.
- A packet has at most 16 stream frames. Round-trip times are never below 1 ms.
- Under loss its core may end the connection: "reserved stream is missing", where a stream
  is over by one copy of its last frame while another copy is due to be sent again.
- It remembers the last 1,024 finished streams: a frame of an older one looks like a new
  stream's, so which ids have been seen is kept here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lattica.link.ack_delay import AckDelay
from lattica.link.engine import EngineConfig, EngineSink, EngineStats
from lattica.link.header import MIN_INITIAL
from lattica.link.outbox import Chunk
from lattica.link.qh3_connection import OWN_PROBING, REMOTE, Connection
from lattica.link.secrets import SecretsLog
from lattica.link.streams import SeenStreams, WaitingStreams
from lattica.path.interface import VirtualAddress

MAX_REASON = 200  # bytes of a close reason; it has to fit one packet
MAX_GHOSTS = 4096  # frames of streams long over: a few are late packets, many are an attack
_PATIENCE = 2  # probes unanswered while too large datagrams are queued, or in a handshake
_INTERNAL_ERROR = 0x1  # RFC 9000 §20.1
_PROTOCOL_VIOLATION = 0xA
_PADDING = 0x0  # the frame type of an error that no frame has caused


class Qh3Engine:
    """See `lattica.link.engine.Engine`."""

    name = "qh3"
    can_grow = False

    def __init__(
        self,
        config: EngineConfig,
        *,
        original_destination: bytes | None = None,
        retry_source: bytes | None = None,
    ) -> None:
        """See `lattica.link.engine.EngineMaker`."""
        self._config = config
        self._secrets = SecretsLog()
        self._connection = Connection(
            config,
            self._secrets,
            original_destination=original_destination,
            retry_source=retry_source,
        )
        self._ids = [self._connection.host_cid]
        if original_destination is not None:
            self._ids.append(retry_source or original_destination)
        first = 0 if config.is_client else 1
        self._next_id = {False: first, True: first + 2}
        self._allowed = {False: 0, True: 0}  # streams of ours, by the other end
        self._waiting = WaitingStreams()  # for that
        self._seen = SeenStreams(is_client=config.is_client)
        self._ghosts = 0
        self._shrink_to: int | None = None  # as soon as no larger datagram is queued
        self._has_urgent = False  # a probe, or the last words
        self._is_told = False  # that the handshake is through
        self._is_closed = False
        self._failure: str | None = None  # to be told when the events are read
        self._rtt_min = 0.0
        self._first_packets = 0  # sent before the other end was heard of
        self._acks = AckDelay()

    @property
    def connection_ids(self) -> Sequence[bytes]:
        return tuple(self._ids)

    @property
    def rtt(self) -> float:
        core = self._connection.core
        return 0.0 if core is None else core.smoothed_rtt or 0.0

    def statistics(self) -> EngineStats:
        core = self._connection.core
        return EngineStats(
            rtt=self.rtt,
            rtt_min=self._rtt_min,
            rtt_latest=core.latest_rtt or 0.0 if core is not None else 0.0,
            window=core.congestion_window if core is not None else 0,
            in_flight=core.bytes_in_flight if core is not None else 0,
            unsent=self.unsent(),
            datagram=core.active_path[5] if core is not None else self._config.datagram,
            streams=len(self._seen),
            packets_lost=core.loss_total if core is not None else 0,
        )

    def unsent(self) -> int:
        core = self._connection.core
        return self._waiting.size + (0 if core is None else core.get_send_buffer_size())

    @property
    def datagram(self) -> int:
        return self._shrink_to or self._config.datagram

    def set_datagram(self, size: int) -> None:
        self._shrink_to = max(size, MIN_INITIAL)  # when next something is sent

    def connect(self, address: VirtualAddress, now: float) -> None:
        self._connection.connect(REMOTE, now)

    def receive(self, datagram: bytes, address: VirtualAddress, now: float) -> bool:
        return self.receive_many([datagram], address, now)

    def receive_many(self, datagrams: Sequence[bytes], address: VirtualAddress, now: float) -> bool:
        connection = self._connection
        core = connection.core
        try:
            if connection.is_complete:
                assert core is not None
                report = core.receive_many_datagrams(list(datagrams), REMOTE, now)
                self._acks.received(len(datagrams))
                latest = core.latest_rtt
                if latest is not None and (latest < self._rtt_min or not self._rtt_min):
                    self._rtt_min = latest
                return report[2] > 0
            for datagram in datagrams:
                connection.receive_early(datagram, now)
        except Exception as error:  # noqa: BLE001  (a stranger's bytes must not end the loop)
            self._fail(f"cannot parse a packet: {type(error).__name__}")
            return False
        return connection.is_complete

    def drain(self, sink: EngineSink) -> None:
        connection = self._connection
        core = connection.core
        if core is None:
            return
        if connection.is_complete and not self._is_told:
            self._is_told = True
            bidirectional, unidirectional, _, _ = core.stream_limits
            self._allowed = {False: bidirectional, True: unidirectional}
            sink.handshake_done()
        if connection.inbox:
            inbox, connection.inbox = connection.inbox, []
            for early in inbox:
                self._hand_on(early, sink)
        next_event = core.next_event
        while (event := next_event()) is not None:
            if event[0] == "stream_data":
                if self._seen.check(event[1]):
                    sink.stream_data(event[1], event[2], event[3])
                else:
                    self._on_ghost()
            else:
                self._hand_on(event, sink)
        failure = connection.tls_error or self._failure
        if failure is not None:
            self._tell_closed(sink, None, failure)

    def datagrams(self, now: float) -> list[bytes]:
        connection = self._connection
        core = connection.core
        if core is None:
            return []
        if self._waiting:
            self._admit(core)
        result: list[bytes] = []
        window = self._config.window
        poll = core.poll_transmit
        try:
            if core.bytes_in_flight >= window and not self._is_urgent(core, now):
                return result
            while (transmit := poll(now)) is not None:
                result.append(transmit[0])
                if core.bytes_in_flight >= window:
                    break
            if self._shrink_to is not None:
                self._shrink(core, self._shrink_to, is_drained=transmit is None)
        except (RuntimeError, ValueError) as error:
            # Before the other end's address is validated, this is how a lack of credit shows.
            if connection.is_complete:
                self._fail(f"cannot build a packet: {error}")
        if not connection.is_complete:
            self._first_packets += len(result)
        return result

    def timer(self) -> float | None:
        core = self._connection.core
        if core is None:
            return None
        if self._failure is not None and not self._is_closed:
            return 0.0
        timer = core.get_timer()
        if timer is None:
            return None
        kind, at = timer
        return self._acks.until(at) if kind == "ack_application" else at

    def handle_timer(self, now: float) -> None:
        connection = self._connection
        core = connection.core
        if core is None:
            return
        if not connection.is_complete and not self._handle_early_timer(core, now):
            return
        try:
            core.handle_timer(now)
            self._has_urgent = True
        except (RuntimeError, ValueError) as error:
            self._fail(f"cannot handle a timer: {error}")

    def next_stream_id(self, *, unidirectional: bool) -> int:
        stream_id = self._next_id[unidirectional]
        self._next_id[unidirectional] += 4
        self._seen.add(stream_id)
        if stream_id >> 2 >= self._allowed[unidirectional]:
            self._waiting.add(stream_id)
        return stream_id

    def send(self, stream_id: int, data: Chunk, end: bool) -> bool:
        if self._waiting:
            waiting = self._waiting.get(stream_id)
            if waiting is not None:
                return self._waiting.write(waiting, data, end)
        core = self._connection.core
        assert core is not None, "streams exist after the handshake"
        try:
            core.send_stream(stream_id, data, end)
        except (ValueError, RuntimeError):
            return False  # finished, reset or stopped meanwhile
        return True

    def reset_stream(self, stream_id: int, code: int) -> None:
        waiting = self._waiting.get(stream_id)
        if waiting is not None:
            self._waiting.give_up(waiting, code)
            return
        core = self._connection.core
        assert core is not None, "streams exist after the handshake"
        try:
            core.reset_stream(stream_id, code)
        except (ValueError, RuntimeError):
            return  # over, or not ours to send on

    def stop_stream(self, stream_id: int, code: int) -> None:
        waiting = self._waiting.get(stream_id)
        if waiting is not None:
            waiting.stop = code
            return
        core = self._connection.core
        assert core is not None, "streams exist after the handshake"
        try:
            core.stop_sending(stream_id, code)
        except (ValueError, RuntimeError):
            return  # finished, or its first packet has not come

    def ping(self) -> None:
        core = self._connection.core
        if core is not None:
            try:
                core.send_ping(0)
            except RuntimeError:
                return  # closed by the other end, which is about to be told

    def binding(self) -> bytes:
        return self._secrets.binding()

    def finish(self) -> None:
        """Its core keeps no trace."""

    def close(self, code: int, reason: str) -> None:
        self._secrets.wipe()
        self._is_closed = True
        core = self._connection.core
        if core is not None:
            self._has_urgent = True
            text = reason.encode()[:MAX_REASON].decode(errors="ignore")
            core.close(code, None, text.encode())

    # ------------------------------------------------------------------ inside

    def _hand_on(self, event: tuple[Any, ...], sink: EngineSink) -> None:
        kind = event[0]
        if kind == "stream_finished":
            self._seen.finish(event[1])
        elif kind == "stream_data":
            if self._seen.check(event[1]):
                sink.stream_data(event[1], event[2], event[3])
            else:
                self._on_ghost()
        elif kind == "stream_reset":
            if self._seen.check(event[1]):
                sink.stream_reset(event[1], event[2])
        elif kind == "stop_sending":
            if self._seen.check(event[1]):
                sink.stream_stopped(event[1], event[2])
        elif kind == "streams_available":
            self._allowed[event[1]] = max(self._allowed[event[1]], event[2])
        elif kind == "connection_id_issued":
            sink.connection_id_added(event[1])
        elif kind == "connection_id_retired":
            sink.connection_id_removed(event[1])
        elif kind == "peer_closed":
            reason = event[4].decode(errors="replace")
            self._tell_closed(sink, event[2] if event[1] else None, reason)
        elif kind == "protocol_error":
            self._tell_closed(sink, None, event[3])
        elif kind == "connection_terminated":
            self._tell_closed(sink, None, event[3].decode(errors="replace"))
        else:
            self._connection.take(event)

    def _tell_closed(self, sink: EngineSink, code: int | None, reason: str) -> None:
        if not self._is_closed:
            self._is_closed = self._has_urgent = True
            sink.closed(code, reason)

    def _fail(self, reason: str) -> None:
        """A bug here or there: end this connection alone."""
        if self._failure is None:
            self._failure = reason[:MAX_REASON]
            core = self._connection.core
            if core is not None:
                self._has_urgent = True
                core.close(_INTERNAL_ERROR, _PADDING, self._failure.encode())

    def _on_ghost(self) -> None:
        self._ghosts += 1
        if self._ghosts > MAX_GHOSTS:
            self._fail("too many frames of streams that are over")

    def _admit(self, core: Any) -> None:
        """Start the streams that the other end has made room for, in the order of their ids."""
        for unidirectional, limit in self._allowed.items():
            while (item := self._waiting.pop(limit, unidirectional=unidirectional)) is not None:
                stream_id, waiting = item
                core.send_stream(stream_id, b"", False)
                for data, end in waiting.writes:
                    core.send_stream(stream_id, data, end)
                if waiting.reset is not None:
                    core.reset_stream(stream_id, waiting.reset)
                if waiting.stop is not None:
                    self.stop_stream(stream_id, waiting.stop)

    def _is_urgent(self, core: Any, now: float) -> bool:
        """Whether a packet has to leave although the window is full."""
        if self._has_urgent:
            self._has_urgent = False
            return True
        timer = core.get_timer()  # an acknowledgement may be due
        return timer is not None and timer[1] <= now

    def _shrink(self, core: Any, size: int, *, is_drained: bool) -> None:
        """Lower the datagram size as soon as nothing is built for a larger one.

        A frame that fits no more would block the core for good. After a look for something
        to send that found nothing, with room for a datagram, no frame waits in the core.
        """
        largest = core.active_path[5]
        has_room = core.bytes_in_flight + largest <= core.congestion_window
        if size >= largest or (is_drained and has_room and self._connection.shrink(size)):
            self._shrink_to = None
        elif core.pto_count > _PATIENCE:
            self._fail("the path takes smaller datagrams than those under way")

    def _handle_early_timer(self, core: Any, now: float) -> bool:
        """A timer before the handshake is through; whether the core should act on it too."""
        timer = core.get_timer()
        if timer is None or timer[0] != "loss_detection" or timer[1] > now:
            return True
        if not self._config.is_client:
            if core.pto_count >= _PATIENCE:
                self._connection.shrink(MIN_INITIAL)
        elif self._config.datagram > OWN_PROBING and not core.received_authenticated_packet:
            self._connection.repeat_first_flight(self._first_packets, now)
            return False
        return True
