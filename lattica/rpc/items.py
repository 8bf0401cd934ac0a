"""Item streams: a writer that stays within its credit, a reader that grants what is taken."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

import msgspec

from lattica.errors import BadResultError, FrameError, LatticaError, StreamTruncatedError
from lattica.rpc import messages as m
from lattica.rpc.bodies import check_credit
from lattica.rpc.channel import Channel
from lattica.rpc.codec import Packed
from lattica.rpc.framing import FrameReader, frame

YIELD_EVERY = 32 * 1024  # bytes after which a producer that never waits lets others run
ITEM_COST = 128  # bytes that an item counts for besides its own: it takes time however small
PIECE = 4 * 1024  # bytes looked through at a time
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(m.StreamFrame).decode


class Stopped(Exception):  # noqa: N818 - a signal within this package, not an error
    """The receiver wants no more items."""


class ItemWriter:
    """Sends items; small ones of one turn of the loop share a write."""

    is_written = False  # it is a channel's source only until then

    def __init__(self, channel: Channel, call: int) -> None:
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._limit = channel.peer_window
        self._sent = 0
        self._since_yield = 0
        self._out = bytearray()
        self._scheduled = False
        self._credit: asyncio.Future[None] | None = None
        self._closed = False
        self._stream = channel.open_source(self, m.Items(call))

    async def send(self, item: Packed) -> None:
        """Send one item, waiting for credit as often as needed.

        Raises:
            Stopped: the receiver or the link is gone.
        """
        data = frame(_encode(m.Item(item.value, item.sizes, item.spilled)))
        await self._put(memoryview(data))
        for view in item.views:
            await self._put(view)
        self._since_yield += ITEM_COST
        if self._since_yield >= YIELD_EVERY:
            self._since_yield = 0
            await asyncio.sleep(0)

    async def finish(self, last: m.End | m.Broken) -> None:
        """Send the stream's last word."""
        await self._put(memoryview(frame(_encode(last))))
        self._scheduled = True
        self._closed = True
        self._channel.write(self._stream, self._out, end=True)
        self._channel.close_source(self._stream)

    def abandon(self) -> None:
        """Give the stream up where it has not ended."""
        if not self._closed:
            self._closed = True
            self._out.clear()
            self._channel.close_source(self._stream, reset=m.CANCELLED)

    def grant(self, limit: int) -> None:
        """See `Source`."""
        check_credit(limit, self._sent, self._channel.peer_window)
        self._limit = max(self._limit, limit)
        self._wake()

    def stopped(self, code: int) -> None:
        """See `Source`."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._credit is not None and not self._credit.done():
            self._credit.set_result(None)

    async def _put(self, view: memoryview) -> None:
        while True:
            if self._closed or self._channel.error is not None:
                raise Stopped
            room = self._limit - self._sent
            part = view[:room] if view.nbytes > room else view
            if part.nbytes:
                self._sent += part.nbytes
                self._since_yield += part.nbytes
                self._write(part)
            view = view[part.nbytes :]
            if not view.nbytes:
                return
            self._credit = self._loop.create_future()
            await self._credit

    def _write(self, part: memoryview) -> None:
        if part.nbytes >= YIELD_EVERY:
            self._flush()
            self._channel.write(self._stream, part)
            return
        self._out += part
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        if not self._closed:
            self._scheduled = False
            self._flush()

    def _flush(self) -> None:
        if self._out:
            out, self._out = self._out, bytearray()
            self._channel.write(self._stream, out)


class Arrived(NamedTuple):
    """One item as it came, and the bytes it took on the wire."""

    value: msgspec.Raw
    views: list[memoryview]
    spilled: bool
    nbytes: int


class ItemReader:
    """Holds what has arrived, at most a window ahead of what was taken."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._window = channel.window
        self._loop = asyncio.get_running_loop()
        self._stream = -1
        self._frames = FrameReader(channel.config.max_frame)
        self._ready: deque[Arrived] = deque()
        self._item: m.Item | None = None  # its buffers are arriving
        self._item_bytes = 0
        self._body = bytearray()
        self._missing = 0
        self._arrived = self._taken = 0
        self._granted = self._window
        self._since_yield = 0
        self._waiter: asyncio.Future[None] | None = None
        self.outcome: m.End | m.Failure | LatticaError | None = None

    def attach(self, stream: int) -> None:
        """The data stream has arrived."""
        if self._stream >= 0:
            raise FrameError("two item streams for one call")
        self._stream = stream

    def feed(self, data: bytes, end: bool) -> None:
        """See `Sink`."""
        self._arrived += len(data)
        if self._arrived > self._granted:
            raise FrameError("more bytes than the credit given")
        if self.outcome is not None and (data or not end):
            raise FrameError("bytes after the end of an item stream")
        # What follows an item is copied: in pieces, or a large chunk of small items would
        # cost the square of its length.
        for at in range(0, len(data), PIECE):
            if self._stream < 0:
                break  # given up
            if self.outcome is not None:
                raise FrameError("bytes after the end of an item stream")
            piece = data[at : at + PIECE]
            while piece:
                piece = self._buffers(piece) if self._missing else self._frame(piece)
        if end:
            self._stream = -1
            if self.outcome is None:
                self.fail(StreamTruncatedError("the item stream ended before its end"))
        self._notify()

    def _frame(self, data: bytes) -> bytes:
        first = self._frames.feed_one(data)
        if first is None:
            return b""
        try:
            message = _decode(first[0])
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise FrameError(f"not an item: {error}") from None
        size = len(first[0]) + 4
        if isinstance(message, m.Item):
            total = sum(message.sizes)
            if total > self._channel.config.max_body:
                self.fail(BadResultError(f"an item of {total} bytes is larger than max_body"))
                self._stop()
                return b""
            if total:
                self._item, self._item_bytes, self._missing = message, size + total, total
                self._body = bytearray()
            else:
                views = [memoryview(b"")] * len(message.sizes)
                self._ready.append(Arrived(message.value, views, message.spilled, size))
        else:
            self._taken += size
            self.outcome = message if isinstance(message, m.End) else message.failure
            if first[1]:
                raise FrameError("bytes after the end of an item stream")
        return first[1]

    def _buffers(self, data: bytes) -> bytes:
        part = data[: self._missing]
        self._body += part
        self._missing -= len(part)
        if not self._missing:
            assert self._item is not None
            whole, at, views = memoryview(self._body), 0, []
            for size in self._item.sizes:
                views.append(whole[at : at + size])
                at += size
            item = self._item
            self._ready.append(Arrived(item.value, views, item.spilled, self._item_bytes))
            self._item = None
        return data[len(part) :]

    def cut(self, code: int) -> None:
        """See `Sink`."""
        self._stream = -1
        self.fail(StreamTruncatedError("the item stream was cut before its end"))

    def fail(self, error: LatticaError | m.Failure) -> None:
        """End with `error`, after the items that have arrived whole."""
        if self.outcome is None:
            self.outcome = error
            self._stop()  # what is on its way is nobody's any more
            self._notify()

    def abandon(self) -> None:
        """Take in no more."""
        self._ready.clear()
        self._body = bytearray()
        self._stop()

    def _stop(self) -> None:
        if self._stream >= 0:
            self._channel.close_sink(self._stream)
            self._stream = -1

    async def next(self) -> Arrived | m.End | m.Failure | LatticaError:
        """The next item, or how the stream ended."""
        while not self._ready:
            if self.outcome is not None:
                return self.outcome
            self._waiter = self._loop.create_future()
            self._grant()
            try:
                await self._waiter
            finally:
                self._waiter = None
        item = self._ready.popleft()
        self._taken += item.nbytes
        self._since_yield += item.nbytes + ITEM_COST
        if self._since_yield >= YIELD_EVERY:
            # Nor may a consumer that always finds an item ready keep the loop to itself.
            self._since_yield = 0
            await asyncio.sleep(0)
        self._grant()
        return item

    def _notify(self) -> None:
        if self._waiter is not None:
            if not self._ready and self.outcome is None:
                self._grant()  # a consumer waits: it takes each byte as it comes
            elif not self._waiter.done():
                self._waiter.set_result(None)

    def _grant(self) -> None:
        if self._stream < 0:
            return
        # While the consumer waits it takes each byte as it comes: else an item larger than
        # the window could never arrive.
        taken = self._taken if self._waiter is None else self._arrived
        limit = taken + self._window
        if limit - self._granted >= self._window // 4:
            self._granted = limit
            self._channel.send(m.Credit(self._stream, limit))
