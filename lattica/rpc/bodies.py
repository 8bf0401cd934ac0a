"""Large buffers of one message on a data stream of their own, under credit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from lattica.errors import FrameError
from lattica.rpc import messages as m
from lattica.rpc.channel import Channel
from lattica.rpc.credit import CreditWindow
from lattica.rpc.meter import Meter


class BodySender:
    """Sends views, never more than the receiver's credit ahead. No copies here."""

    def __init__(
        self, channel: Channel, header: m.Body, views: Sequence[memoryview], meter: Meter
    ) -> None:
        self._channel = channel
        self._meter = meter
        self._header = header
        self._views = [view for view in reversed(views) if view.nbytes]
        self._sent = 0
        self._limit = 0
        self._stream = -1
        self.nbytes = sum(view.nbytes for view in views)
        self.is_written = False  # all of it went to the link
        self.is_over = False  # taken, or given up

    def start(self) -> int:
        """Open the stream and send what the credit allows. Called by the channel."""
        self._limit = self._channel.sending.window
        self._stream = self._channel.sending.open_source(self, self._header)
        self._pump()
        return self._stream

    def grant(self, limit: int) -> None:
        """See `Source`."""
        self._channel.sending.check_credit(self._stream, limit, self._sent)
        self._limit = max(self._limit, limit)
        self._pump()

    def stopped(self, code: int) -> None:
        """See `Source`. A refused call's failure tells the caller why."""
        self.is_over = True
        self._views.clear()

    def abandon(self) -> None:
        """Give up what is not sent yet."""
        if not self.is_over:
            self.is_over = True
            self._views.clear()
            if self._stream >= 0:
                reset = None if self.is_written else m.CANCELLED
                self._channel.sending.close_source(self._stream, reset=reset)

    def _pump(self) -> None:
        if self.is_over or self.is_written:
            return
        channel = self._channel
        while self._views and self._sent < self._limit and channel.error is None:
            view = self._views.pop()
            room = self._limit - self._sent
            if view.nbytes > room:
                self._views.append(view[room:])
                view = view[:room]
            self._sent += view.nbytes
            self._meter.bytes_out += view.nbytes
            channel.write(self._stream, view, end=not self._views, lent=True)
        if not self._views and channel.error is None:
            self.is_written = True
            if not self._sent:
                channel.write(self._stream, b"", end=True)


class BodyReceiver:
    """Takes a body in. What was announced costs nothing until it arrives."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._done: Callable[[str], None] | None = None
        self._meter: Meter | None = None
        self._sizes: Sequence[int] = ()
        self._total = 0
        self._stream = -1
        self._data = bytearray()
        self._targets: list[memoryview] | None = None  # where the bytes go instead
        self._next = 0  # of these, and how much of it is filled
        self._filled = 0
        self._arrived = 0
        self._window = CreditWindow(channel.receiving.window, channel.receiving.growth)
        self._granted = channel.receiving.window
        self._ended = False
        self._is_taken = False
        self._cut = False
        self._early = 0

    @property
    def arrived(self) -> int:
        """Bytes so far."""
        return self._arrived

    def announce(
        self,
        sizes: Sequence[int],
        done: Callable[[str], None],
        meter: Meter,
        into: Sequence[memoryview] = (),
    ) -> None:
        """The message that the body belongs to has arrived. `meter` counts the bytes.

        `done("")` is called once all has arrived, `done(reason)` if it will not. `into` has a
        view of just its size for each buffer: bytes are written there as they come.
        """
        self._sizes, self._total, self._done = sizes, sum(sizes), done
        self._meter = meter
        meter.bytes_in += self._arrived
        if into and self._arrived <= self._total:
            self._targets = list(into)
            early, self._data = self._data, bytearray()
            self._write(early)
        self._channel.receiving.count_early(-self._early)
        self._early = 0
        if self._cut:
            self.cut(m.CANCELLED)
        elif self._stream >= 0:
            self._advance(done)

    def attach(self, stream: int) -> None:
        """The stream has arrived."""
        if self._stream >= 0:
            raise FrameError("two bodies for one message")
        self._stream = stream

    def feed(self, data: bytes, end: bool) -> None:
        """See `Sink`."""
        self._arrived += len(data)
        if self._meter is not None:
            self._meter.bytes_in += len(data)
        self._ended = end
        if self._arrived > self._granted:
            raise FrameError("more bytes than the credit given")
        if self._targets is None or self._arrived > self._total:
            self._data += data
        else:
            self._write(data)
        if self._done is not None:
            self._advance(self._done)
        else:
            self._early += len(data)
            self._channel.receiving.count_early(len(data))

    def _advance(self, done: Callable[[str], None]) -> None:
        arrived = self._arrived
        if arrived > self._total or (self._ended and arrived != self._total):
            raise FrameError(f"a body of {arrived} bytes instead of {self._total}")
        if self._ended:
            self._take()
            self._window.close()
            self._channel.receiving.release(self)
            done("")
        elif self._granted < self._total and self._channel.receiving.admit(self):
            self.resume()

    def resume(self) -> None:
        """It is this body's turn to be given credit."""
        channel, now = self._channel, asyncio.get_running_loop().time()
        window = self._window.taken(self._arrived, channel.link.statistics, now)
        if self._arrived + window - self._granted >= window // 4:
            self._granted = self._arrived + window
            channel.control.send(m.Credit(self._stream, self._granted))

    def cut(self, code: int) -> None:
        """See `Sink`."""
        self._cut = True
        self._window.close()
        self.detach()
        self._data = bytearray()
        self._channel.receiving.count_early(-self._early)
        self._early = 0
        self._channel.receiving.release(self)
        if self._done is not None:
            self._done("a body ended before its end was announced")

    def abandon(self, code: int = m.CANCELLED) -> None:
        """Take in no more."""
        self._done = _nobody
        self._window.close()
        self.detach()
        self._channel.receiving.count_early(-self._early)
        self._early = 0
        self._channel.receiving.release(self)
        if self._stream >= 0:
            if self._ended:
                self._take()
            else:
                self._channel.receiving.close_sink(self._stream, code)
        self._data = bytearray()

    def _take(self) -> None:
        """Tell the sender that its place is free."""
        if not self._is_taken:
            self._is_taken = True
            self._channel.control.send(m.Taken(self._stream))

    def detach(self) -> None:
        """Write no more where it was asked for: it is the caller's again."""
        self._targets = None

    def _write(self, data: bytes | bytearray) -> None:
        assert self._targets is not None
        view = memoryview(data)
        while view.nbytes:
            target = self._targets[self._next]
            part = view[: target.nbytes - self._filled]
            target[self._filled : self._filled + part.nbytes] = part
            self._filled += part.nbytes
            view = view[part.nbytes :]
            if self._filled == target.nbytes:
                self._next, self._filled = self._next + 1, 0

    def views(self) -> list[memoryview]:
        """The buffers, without a copy."""
        if self._targets is not None:
            return self._targets
        whole = memoryview(self._data)
        at, views = 0, []
        for size in self._sizes:
            views.append(whole[at : at + size])
            at += size
        return views


def _nobody(problem: str) -> None:
    """Nobody waits for the body any more."""
