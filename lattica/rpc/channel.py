"""One link's planes: control messages, and data streams with credit.

Knows nothing of methods: `Events` callbacks get control messages and claim data streams.
"""

from __future__ import annotations

import asyncio

import msgspec

from lattica.config import KIB, RpcConfig
from lattica.errors import CallLostError, FrameError, LinkError, LinkLostError
from lattica.link.interface import Link
from lattica.rpc import messages as m
from lattica.rpc.control import Control
from lattica.rpc.framing import FrameReader
from lattica.rpc.interface import Events
from lattica.rpc.receiving import Receiving
from lattica.rpc.sending import Sending

ACK_EVERY = 256 * KIB  # control bytes
_decode_control = msgspec.msgpack.Decoder(list[m.Control]).decode


class Channel:
    """Implements `LinkHandler` for the RPC layer, and `Wire` for its own parts.

    Attributes:
        control: sends control messages.
        sending, receiving: the data streams of each direction.
        error: why the link is gone; None: it is not.
        now: when the newest control message arrived, in seconds.
    """

    def __init__(self, link: Link, config: RpcConfig, events: Events) -> None:
        self.link = link
        self.config = config
        self.error: LinkError | None = None
        self._events = events
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time()
        self._reader = FrameReader(config.max_frame)
        self._greeted = False
        self._received = self._acknowledged = 0  # control bytes
        self.control = Control(self, events.flushed)
        self.sending = Sending(self)
        self.receiving = Receiving(self, events.claim, self.control.send)
        hello = m.Hello(m.VERSION, self.receiving.window, config.max_streams_per_peer)
        self.control.send(hello)

    def write(
        self,
        stream: int,
        data: bytes | bytearray | memoryview,
        *,
        end: bool = False,
        lent: bool = False,
    ) -> None:
        """See `Wire`."""
        try:
            self.link.write(stream, data, end=end, lent=lent)
        except LinkLostError as error:
            self.link_lost(error)

    # ------------------------------------------------------------ from the link

    def stream_data(self, stream_id: int, data: bytes, end: bool) -> None:
        """See `LinkHandler`."""
        if self.error is not None:
            return
        try:
            if stream_id == self.control.stream:
                self._control_data(data, end)
            elif not self.receiving.feed(stream_id, data, end):
                self._new_stream(stream_id, data, end)
        except FrameError as error:
            self.broken(error)

    def _new_stream(self, stream_id: int, data: bytes, end: bool) -> None:
        theirs = (stream_id & 1 == 0) is not self.link.is_dialer
        if stream_id & 2 == 0:
            if self.control.stream >= 0 or not theirs:
                raise FrameError("a second control stream")
            self.control.begin(stream_id)
            self._control_data(data, end)
            return
        if not theirs:
            raise FrameError("data on a stream of ours")
        self.receiving.open(stream_id, data, end)

    def stream_reset(self, stream_id: int, code: int) -> None:
        """See `LinkHandler`."""
        if stream_id == self.control.stream:
            self.broken(FrameError("the control stream was reset"))
        self.receiving.reset(stream_id, code)

    def stream_stopped(self, stream_id: int, code: int) -> None:
        """See `LinkHandler`."""
        if stream_id == self.control.stream:
            self.broken(FrameError("the control stream was stopped"))
        self.sending.stopped(stream_id, code)

    # -------------------------------------------------------- control, arriving

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
        if self._received - self._acknowledged >= ACK_EVERY:
            self._acknowledged = self._received
            self.control.send(m.Ack(self._received))
        if end:
            raise FrameError("the control stream ended")

    def _control_message(self, message: m.Control) -> None:
        if isinstance(message, m.Failure):
            self._events.failure(message)
        elif isinstance(message, m.Cancel):
            self._events.cancel(message)
        elif isinstance(message, m.Credit):
            if (source := self.sending.source(message.stream)) is not None:
                source.grant(message.limit)
        elif isinstance(message, m.Taken):
            if (source := self.sending.source(message.stream)) is not None:
                if not source.is_written:
                    raise FrameError("what has not been sent cannot be taken")
                self.sending.close_source(message.stream)
        elif isinstance(message, m.Ack):
            self.control.acknowledged(message.received)
        elif isinstance(message, m.Hello):
            self._hello(message)

    def _hello(self, hello: m.Hello) -> None:
        if self._greeted:
            raise FrameError("a second hello")
        if hello.version != m.VERSION:
            raise FrameError(f"version {hello.version}; this end speaks {m.VERSION}")
        self._greeted = True
        self.sending.greeted(hello)

    # -------------------------------------------------------------------- end

    @property
    def is_idle(self) -> bool:
        """See `lattica.link.interface.Drainable`."""
        is_writing = self.control.is_writing or self.sending.is_writing
        return not is_writing and self._events.is_idle

    def link_lost(self, error: LinkError) -> None:
        """See `LinkHandler`."""
        if self.error is not None:
            return
        self.error = error
        self.receiving.lost()
        self.control.wake()
        self.sending.lost()
        self._events.lost(error)

    def broken(self, error: FrameError) -> None:
        """See `Wire`."""
        self._events.bad_frame(error)
        self.link.close(f"FrameError: {error}")
        self.link_lost(LinkLostError(f"closed here: FrameError: {error}"))


def lost_call(error: LinkError, *, may_have_run: bool) -> CallLostError:
    """The outcome of a call whose link ended."""
    ran = "may have run" if may_have_run else "has not run"
    return CallLostError(f"the link was lost ({error}); the call {ran}", may_have_run=may_have_run)
