"""The data streams that come from the other end: who takes each in, and when bodies get credit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from lattica.errors import FrameError
from lattica.rpc import messages as m
from lattica.rpc import sending
from lattica.rpc.credit import Growth
from lattica.rpc.framing import FrameReader
from lattica.rpc.interface import Receiver, Sink, Wire

HEADER_LIMIT = 64  # bytes
RECEIVING = 16  # bodies larger than a window that are given credit at a time
_decode_header = msgspec.msgpack.Decoder(m.Header).decode
Claim = Callable[[m.Header, int], Sink | None]


class Receiving:
    """Hands the bytes of each data stream to its sink."""

    def __init__(self, wire: Wire, claim: Claim, send: Callable[[m.Control], None]) -> None:
        """`claim` names a new stream's sink, None if nobody wants it; `send` tells the sender."""
        self._wire = wire
        self._claim = claim
        self._send = send
        self.window = min(max(m.INITIAL_CREDIT, wire.config.stream_window), m.MAX_WINDOW)
        self.growth = Growth()
        # Streams that were stopped count until their sender has heard of it.
        self._limit = 4 * wire.config.max_streams_per_peer
        self._sinks: dict[int, Sink] = {}
        self._opening: dict[int, FrameReader] = {}
        self._receiving: dict[Receiver, None] = {}
        self._delayed: deque[Receiver] = deque()  # arriving bodies that wait for credit
        self._early = 0

    def feed(self, stream: int, data: bytes, end: bool) -> bool:
        """Bytes of a stream that is known; False: it is not, call `open`.

        Raises:
            FrameError: they break the protocol.
        """
        sink = self._sinks.get(stream)
        if sink is None:
            return False
        if end:
            self._end_sink(stream, sink)
        sink.feed(data, end)
        return True

    def open(self, stream: int, data: bytes, end: bool) -> None:
        """Bytes of a stream that the other end has just opened.

        Raises:
            FrameError: they break the protocol, or there are too many streams.
        """
        reader = self._opening.get(stream)
        if reader is None:
            if len(self._sinks) + len(self._opening) >= self._limit:
                raise FrameError("too many data streams at a time")
            reader = self._opening[stream] = FrameReader(HEADER_LIMIT)
        first = reader.feed_one(data)
        if first is None:
            if end:
                raise FrameError("a data stream without a header")
            return
        del self._opening[stream]
        try:
            header = _decode_header(first[0])
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise FrameError(f"not a data stream's header: {error}") from None
        sink = self._attach(stream, header)
        if end:
            self._end_sink(stream, sink)
        if first[1] or end:
            sink.feed(first[1], end)

    def _attach(self, stream: int, header: m.Header) -> Sink:
        self._sinks[stream] = _DISCARD  # else its sink could not be closed at once
        sink = self._claim(header, stream)
        if sink is None:
            self.close_sink(stream, m.REFUSED)
            sink = _DISCARD
        if self._sinks.get(stream) is _DISCARD:
            self._sinks[stream] = sink
        return sink

    def _end_sink(self, stream: int, sink: Sink) -> None:
        del self._sinks[stream]
        if sink is _DISCARD:
            # It came whole before its sender could be stopped: else its place there, and
            # sooner or later every place, would stay taken.
            self._send(m.Taken(stream))

    def close_sink(self, stream: int, code: int = m.CANCELLED) -> None:
        """Take in no more of a stream."""
        if stream in self._sinks:
            self._sinks[stream] = _DISCARD
            if self._wire.error is None:
                self._wire.link.stop_stream(stream, code)

    def reset(self, stream: int, code: int) -> None:
        """Its sender gave a stream up."""
        self._opening.pop(stream, None)
        if (sink := self._sinks.pop(stream, None)) is not None:
            sink.cut(code)

    def lost(self) -> None:
        """The link is gone."""
        self._sinks.clear()
        self._opening.clear()
        self._receiving.clear()
        self._delayed.clear()

    # ------------------------------------------------------------------- bodies

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
        """Bytes of streams whose message has not come yet: a sender has so many under way.

        Raises:
            FrameError: there are too many.
        """
        self._early += change
        if self._early > 2 * sending.SENDING:
            raise FrameError("too many bytes without a message that they belong to")


class _Discard:
    def feed(self, data: bytes, end: bool) -> None:
        """Nobody wants it."""

    def cut(self, code: int) -> None:
        """Nor this."""


_DISCARD = _Discard()
