"""One link's planes: control frames, and data streams with credit.

Knows nothing of methods: `Peer` callbacks get control messages and claim data streams.
"""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from lattica.config import KIB, MIB, RpcConfig
from lattica.errors import CallLostError, FrameError, LinkError, LinkLostError
from lattica.link.interface import Link
from lattica.rpc import messages as m
from lattica.rpc.codec import Encoder
from lattica.rpc.credit import Allowance, Growth
from lattica.rpc.framing import Batch, FrameReader, frame
from lattica.rpc.interface import Body, Events, Receiver, Sink, Source

ACK_EVERY = 256 * KIB  # control bytes
CONTROL_WINDOW = 4 * MIB  # control bytes sent but not acknowledged, before senders wait
CONTROL_LIMIT = 64 * MIB  # the same, where the other end makes us answer and takes nothing in
HEADER_LIMIT = 64  # bytes
SENDING = 16 * MIB  # bytes of bodies that may wait in the link's queue
RECEIVING = 16  # bodies larger than a window that are given credit at a time
BATCH = 32 * KIB  # bytes of control messages in one frame, about
_encode = msgspec.msgpack.Encoder().encode
_decode_control = msgspec.msgpack.Decoder(list[m.Control]).decode
_decode_header = msgspec.msgpack.Decoder(m.Header).decode


class Channel:
    """Implements `LinkHandler` for the RPC layer."""

    def __init__(self, link: Link, config: RpcConfig, events: Events) -> None:
        self.link = link
        self.config = config
        self._events = events
        self._loop = asyncio.get_running_loop()
        self.window = min(max(m.INITIAL_CREDIT, config.stream_window), m.MAX_WINDOW)
        self.growth = Growth()
        self._allowance = Allowance()
        self.peer_window = m.INITIAL_CREDIT
        self.peer_streams = config.max_streams_per_peer
        self.error: LinkError | None = None
        self._control = link.open_stream(unidirectional=False) if link.is_dialer else -1
        self._reader = FrameReader(config.max_frame)
        self._greeted = False
        self.now = self._loop.time()  # when the newest control message arrived, seconds
        self.encoder = Encoder(
            inline_limit=config.inline_limit, message_limit=config.max_frame // 2
        )
        self._batch = Batch(min(BATCH, config.max_frame // 4))
        self._scheduled = False
        self.is_full = False  # the control plane is behind: call `room` before sending more
        self._sent = self._acked = self._received = self._acked_by_us = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._resuming = 0  # woken, and about to send
        self._sinks: dict[int, Sink] = {}
        self._opening: dict[int, FrameReader] = {}
        self._sources: dict[int, Source] = {}
        self._bodies: deque[Body] = deque()  # wait for a place
        self.waiting_bytes = 0  # of these bodies
        self._sending: dict[int, int] = {}  # streams of bodies and the bytes they may queue
        self._sending_bytes = 0
        self._receiving: dict[Receiver, None] = {}
        self._delayed: deque[Receiver] = deque()  # arriving bodies that wait for credit
        self._early = 0
        self._placeless: deque[asyncio.Future[None]] = deque()  # item streams to be opened
        self.send(m.Hello(m.VERSION, self.window, config.max_streams_per_peer))

    # ---------------------------------------------------------------- control

    def send(self, message: m.Control) -> None:
        """Queue a control message; all of one turn of the loop leave in one write."""
        if self.error is None and not self.post(message):
            raise ValueError("a control message with values that `Encoder.pack` has not seen")

    def post(self, message: m.Control) -> int:
        """`send` a message whose value is not packed yet; its bytes, 0 if it must be packed.

        Raises:
            ENCODE_ERRORS: the value has no wire form.
        """
        batch = self._batch
        nbytes = self.encoder.append(message, batch.buffer)
        if not nbytes:
            return 0
        if batch.added():
            self._check_full()
        if not self._scheduled:
            self._scheduled = True
            self.link.before_flush(self._flush)
        return nbytes

    @property
    def _unacknowledged(self) -> int:
        return self._sent + len(self._batch) - self._acked

    def _check_full(self) -> None:
        self.is_full = bool(
            self._waiting or self._resuming or self._unacknowledged > CONTROL_WINDOW
        )

    async def room(self) -> None:
        """Wait, first come first served, until the control plane has caught up.

        Raises:
            LinkLostError: the link ended first.
        """
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        self.is_full = True
        try:
            await waiter  # until the other end takes something in, or the link is lost
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                self._check_full()
            else:
                self._resuming -= 1
                self._loop.call_soon(self._wake)  # once this one has sent
        if self.error is not None:
            raise LinkLostError(str(self.error))

    def _wake(self) -> None:
        while (
            self._waiting
            and not self._resuming
            and (self.error is not None or self._unacknowledged <= CONTROL_WINDOW)
        ):
            waiter = self._waiting.popleft()
            self._resuming += 1
            if not waiter.done():
                waiter.set_result(None)
        self._check_full()

    def _flush(self) -> None:
        self._scheduled = False
        if self.error is not None or self._control < 0 or not len(self._batch):
            return
        if self._unacknowledged > CONTROL_LIMIT:
            self._broken(FrameError("the other end takes nothing in"))
            return
        out = self._batch.take()
        self._sent += len(out)
        self._check_full()
        self.write(self._control, out, lent=True)
        if self.error is None:
            self._events.flushed()

    def write(
        self,
        stream: int,
        data: bytes | bytearray | memoryview,
        *,
        end: bool = False,
        lent: bool = False,
    ) -> None:
        """Write to the link (see there); a lost link is told through `lost`, not here."""
        try:
            self.link.write(stream, data, end=end, lent=lent)
        except LinkLostError as error:
            self.link_lost(error)

    # ------------------------------------------------------------ data, sending

    def open_source(self, source: Source, header: m.Header) -> int:
        """Open a data stream and write its header. `source` hears of credit from now on."""
        stream = self.link.open_stream(unidirectional=True)
        self._sources[stream] = source
        self.write(stream, frame(_encode(header)))
        return stream

    def close_source(self, stream: int, *, reset: int | None = None) -> None:
        """The stream has been written to its end, or is given up with a reset."""
        if self._sources.pop(stream, None) is None:
            return
        if reset is not None and self.error is None:
            self.link.reset_stream(stream, reset)
        self._free(stream)

    @property
    def has_place(self) -> bool:
        """Whether one more body may be sent now."""
        return len(self._sources) < self._places

    @property
    def has_place_for_items(self) -> bool:
        """The same for an item stream: slow ones must leave places to bodies."""
        return len(self._sources) - len(self._sending) < self._places - self._places // 4

    async def place_for_items(self) -> None:
        """Wait, first come first served, until an item stream may be sent or the link is gone."""
        while not self.has_place_for_items and self.error is None:
            waiter = self._loop.create_future()
            self._placeless.append(waiter)
            try:
                await waiter  # bounded by the deadline of the call that the items are part of
            except asyncio.CancelledError:
                if waiter.done():
                    self._give_place()
                raise

    def _give_place(self) -> None:
        while self._placeless:
            waiter = self._placeless.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    @property
    def _places(self) -> int:
        return min(self.peer_streams, self.config.max_streams_per_peer)

    def start_body(self, body: Body) -> None:
        """Start `body` when there is room: what waits in the link's queue is bounded."""
        self._bodies.append(body)
        self.waiting_bytes += body.nbytes
        self._start_bodies()

    def _free(self, stream: int) -> None:
        self._sending_bytes -= self._sending.pop(stream, 0)
        self._start_bodies()
        if self._placeless and self.has_place_for_items:
            self._give_place()

    def check_credit(self, stream: int, limit: int, sent: int) -> None:
        """See `Allowance.check`."""
        self._allowance.check(stream, limit, sent, self.peer_window, self._sources)

    def _start_bodies(self) -> None:
        while self._bodies and self.has_place and self.error is None:
            body = self._bodies[0]
            cost = min(body.nbytes, self.peer_window)
            if self._sending and self._sending_bytes + cost > SENDING:
                return
            self._bodies.popleft()
            self.waiting_bytes -= body.nbytes
            if body.is_over:
                continue
            try:
                stream = body.start()
            except LinkLostError as error:  # closed in this turn of the loop
                self.link_lost(error)
                return
            self._sending[stream] = cost
            self._sending_bytes += cost

    # ---------------------------------------------------------- data, receiving

    def close_sink(self, stream: int, code: int = m.CANCELLED) -> None:
        """Take in no more of a stream."""
        if stream in self._sinks:
            self._sinks[stream] = _DISCARD
            if self.error is None:
                self.link.stop_stream(stream, code)

    def admit(self, receiver: Receiver) -> bool:
        """Whether `receiver` may be given credit now; if not, `resume` is called later."""
        if receiver in self._receiving:
            return True
        if len(self._receiving) < RECEIVING:
            self._receiving[receiver] = None
            return True
        if receiver not in self._delayed:
            self._delayed.append(receiver)
        return False

    def release(self, receiver: Receiver) -> None:
        """`receiver` needs no more credit."""
        if receiver in self._delayed:
            self._delayed.remove(receiver)
        if receiver in self._receiving:
            del self._receiving[receiver]
            if self._delayed:
                following = self._delayed.popleft()
                self._receiving[following] = None
                following.resume()

    def count_early(self, change: int) -> None:
        """Bytes of bodies whose message has not come yet: a sender has so many under way.

        Raises:
            FrameError: there are too many.
        """
        self._early += change
        if self._early > 2 * SENDING:
            raise FrameError("too many bytes without a message that they belong to")

    def stream_data(self, stream_id: int, data: bytes, end: bool) -> None:
        """See `LinkHandler`."""
        if self.error is not None:
            return
        try:
            if stream_id == self._control:
                self._control_data(data, end)
            elif (sink := self._sinks.get(stream_id)) is not None:
                if end:
                    self._end_sink(stream_id, sink)
                sink.feed(data, end)
            else:
                self._new_data(stream_id, data, end)
        except FrameError as error:
            self._broken(error)

    def _control_data(self, data: bytes, end: bool) -> None:
        self._received += len(data)
        self.now = self._loop.time()
        for payload in self._reader.feed(data):
            try:
                messages = _decode_control(payload)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise FrameError(f"not control messages: {error}") from None
            if not self._greeted and (not messages or type(messages[0]) is not m.Hello):
                raise FrameError("the first frame must be a hello")
            on_result, on_call = self._events.result, self._events.call
            for message in messages:
                if isinstance(message, m.Result):
                    on_result(message)
                elif isinstance(message, m.Call):
                    on_call(message)
                else:
                    self._control_message(message)
        if self._received - self._acked_by_us >= ACK_EVERY:
            self._acked_by_us = self._received
            self.send(m.Ack(self._received))
        if end:
            raise FrameError("the control stream ended")

    def _control_message(self, message: m.Control) -> None:
        if isinstance(message, m.Failure):
            self._events.failure(message)
        elif isinstance(message, m.Cancel):
            self._events.cancel(message)
        elif isinstance(message, m.Credit):
            if (source := self._sources.get(message.stream)) is not None:
                source.grant(message.limit)
        elif isinstance(message, m.Taken):
            if (source := self._sources.get(message.stream)) is not None:
                if not source.is_written:
                    raise FrameError("what has not been sent cannot be taken")
                self.close_source(message.stream)
        elif isinstance(message, m.Ack):
            if not self._acked <= message.received <= self._sent:
                raise FrameError("an acknowledgement of what was not sent")
            self._acked = message.received
            self._wake()
        elif isinstance(message, m.Hello):
            self._hello(message)

    def _hello(self, hello: m.Hello) -> None:
        if self._greeted:
            raise FrameError("a second hello")
        if hello.version != m.VERSION:
            raise FrameError(f"version {hello.version}; this end speaks {m.VERSION}")
        self._greeted = True
        self.peer_window = min(max(m.INITIAL_CREDIT, hello.window), m.MAX_WINDOW)
        self.peer_streams = hello.streams
        for source in tuple(self._sources.values()):
            source.grant(self.peer_window)

    def _new_data(self, stream_id: int, data: bytes, end: bool) -> None:
        theirs = (stream_id & 1 == 0) is not self.link.is_dialer
        if stream_id & 2 == 0:
            if self._control >= 0 or not theirs:
                raise FrameError("a second control stream")
            self._control = stream_id
            self._flush()
            self._control_data(data, end)
            return
        if not theirs:
            raise FrameError("data on a stream of ours")
        reader = self._opening.get(stream_id)
        if reader is None:
            # Streams that were stopped count until their sender has heard of it.
            if len(self._sinks) + len(self._opening) >= 4 * self.config.max_streams_per_peer:
                raise FrameError("too many data streams at a time")
            reader = self._opening[stream_id] = FrameReader(HEADER_LIMIT)
        first = reader.feed_one(data)
        if first is None:
            if end:
                raise FrameError("a data stream without a header")
            return
        del self._opening[stream_id]
        try:
            header = _decode_header(first[0])
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise FrameError(f"not a data stream's header: {error}") from None
        self._sinks[stream_id] = _DISCARD
        sink = self._events.claim(header, stream_id)
        if sink is None:
            self.close_sink(stream_id, m.REFUSED)
            sink = _DISCARD
        if self._sinks.get(stream_id) is _DISCARD:
            self._sinks[stream_id] = sink
        if end:
            self._end_sink(stream_id, sink)
        if first[1] or end:
            sink.feed(first[1], end)

    def _end_sink(self, stream: int, sink: Sink) -> None:
        del self._sinks[stream]
        if sink is _DISCARD:
            # It came whole before its sender could be stopped: else its place there, and
            # sooner or later every place, would stay taken.
            self.send(m.Taken(stream))

    def stream_reset(self, stream_id: int, code: int) -> None:
        """See `LinkHandler`."""
        if stream_id == self._control:
            self._broken(FrameError("the control stream was reset"))
        self._opening.pop(stream_id, None)
        if (sink := self._sinks.pop(stream_id, None)) is not None:
            sink.cut(code)

    def stream_stopped(self, stream_id: int, code: int) -> None:
        """See `LinkHandler`."""
        if stream_id == self._control:
            self._broken(FrameError("the control stream was stopped"))
        if (source := self._sources.pop(stream_id, None)) is not None:
            if self.error is None:
                self.link.reset_stream(stream_id, code)
            source.stopped(code)
            self._free(stream_id)

    # -------------------------------------------------------------------- end

    @property
    def is_idle(self) -> bool:
        """See `lattica.link.interface.Drainable`."""
        is_writing = len(self._batch) or self._bodies or self._sources
        return not is_writing and self._events.is_idle

    def link_lost(self, error: LinkError) -> None:
        """See `LinkHandler`."""
        if self.error is not None:
            return
        self.error = error
        self._sinks.clear()
        self._opening.clear()
        self._sources.clear()
        self._bodies.clear()
        self.waiting_bytes = 0
        self._receiving.clear()
        self._delayed.clear()
        self._wake()
        while self._placeless:
            self._give_place()
        self._events.lost(error)

    def _broken(self, error: FrameError) -> None:
        self._events.bad_frame(error)
        self.link.close(f"FrameError: {error}")
        self.link_lost(LinkLostError(f"closed here: FrameError: {error}"))


class _Discard:
    def feed(self, data: bytes, end: bool) -> None:
        """Nobody wants it."""

    def cut(self, code: int) -> None:
        """Nor this."""


_DISCARD = _Discard()


def lost_call(error: LinkError, *, may_have_run: bool) -> CallLostError:
    """The outcome of a call whose link ended."""
    ran = "may have run" if may_have_run else "has not run"
    return CallLostError(f"the link was lost ({error}); the call {ran}", may_have_run=may_have_run)
