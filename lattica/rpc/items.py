"""Item streams: a writer that stays within its credit, a reader that grants what is taken."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import msgspec

from lattica.errors import (
    BadArgumentsError,
    FrameError,
    LatticaError,
    RpcError,
    StreamTruncatedError,
)
from lattica.rpc import messages as m
from lattica.rpc.channel import Channel
from lattica.rpc.codec import DECODE_ERRORS, ENCODE_ERRORS, Encoder
from lattica.rpc.credit import CreditWindow
from lattica.rpc.framing import PREFIX, frame
from lattica.rpc.itemtypes import Arrived, ItemType
from lattica.rpc.meter import Meter
from lattica.rpc.regions import Region

YIELD_EVERY = 32 * 1024  # bytes after which a producer that never waits lets others run
ITEM_COST = 128  # bytes that an item counts for besides its own: it takes time however small
_BATCH = b"\x92\x03"  # a `Batch`: an array of its tag and the items
_BATCH_HEADER = PREFIX + len(_BATCH) + 5  # bytes around a batch, at most
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(m.StreamFrame).decode


class Stopped(Exception):  # noqa: N818 - a signal within this package, not an error
    """The receiver wants no more items."""


class ItemWriter:
    """Sends items; small ones of one turn of the loop share a frame and a write."""

    is_written = False  # it is a channel's source only until then

    def __init__(
        self, channel: Channel, header: m.Items, encoder: Encoder, kind: ItemType, meter: Meter
    ) -> None:
        """`meter` counts the bytes that go to the link."""
        self._channel = channel
        self._meter = meter
        self._encoder = encoder
        self._kind = kind
        self._loop = asyncio.get_running_loop()
        self._limit = channel.peer_window
        self._sent = 0
        self._batch = bytearray()
        self._count = 0
        self._weight = 0  # of the batch: its bytes, and a cost for each item
        self._due = 0  # the weight at which to drain
        self._since_yield = 0
        self._large: Any = None  # an item that waits for `drain`
        self._out = bytearray()
        self._scheduled = False
        self._credit: asyncio.Future[None] | None = None
        self._closed = False
        self._stream = channel.open_source(self, header)
        self._set_due()

    def put(self, value: Any) -> bool:
        """Queue one item. True: `drain` must be awaited before the next.

        Raises:
            RpcError: it is not of the stream's type.
        """
        if type(value) is not self._kind.exact:
            value = self._kind.check(value)
        try:
            data = self._encoder.small(value)
            if data is None:
                self._large = self._encoder.pack(value)
                return True
        except ENCODE_ERRORS as error:
            raise self._kind.wrong(error) from None
        self._batch += data
        self._count += 1
        self._weight += len(data) + ITEM_COST
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush_soon)
        return self._weight >= self._due

    async def drain(self) -> None:
        """Send what was put, waiting for credit as often as needed.

        Raises:
            Stopped: the receiver or the link is gone.
        """
        if self._count:
            self._since_yield += ITEM_COST * self._count
            await self._put(memoryview(self._seal()))
        if self._large is not None:
            item, self._large = self._large, None
            self._since_yield += ITEM_COST
            await self._put(
                memoryview(frame(_encode(m.Item(item.value, item.sizes, item.spilled))))
            )
            for view in item.views:
                await self._put(view)
        if self._closed or self._channel.error is not None:
            raise Stopped
        if self._since_yield >= YIELD_EVERY:
            await asyncio.sleep(0)
            self._since_yield = 0
        self._set_due()

    async def finish(self, last: m.End | m.Broken) -> None:
        """Send the stream's last word.

        Raises:
            Stopped: the receiver or the link is gone.
        """
        await self.drain()
        await self._put(memoryview(frame(_encode(last))))
        self._scheduled = True
        self._closed = True
        self._meter.bytes_out += len(self._out)
        self._channel.write(self._stream, self._out, end=True)
        self._channel.close_source(self._stream)

    def abandon(self) -> None:
        """Give the stream up where it has not ended."""
        if not self._closed:
            self._close()
            self._channel.close_source(self._stream, reset=m.CANCELLED)

    def grant(self, limit: int) -> None:
        """See `Source`."""
        self._channel.check_credit(self._stream, limit, self._sent)
        self._limit = max(self._limit, limit)
        self._set_due()
        self._wake()

    def stopped(self, code: int) -> None:
        """See `Source`."""
        self._close()
        self._wake()

    def _close(self) -> None:
        self._closed = True
        self._due = 0  # the next `put` leads to `drain`, which tells
        self._out.clear()
        self._batch.clear()
        self._count = 0

    def _set_due(self) -> None:
        if not self._closed:
            room = self._limit - self._sent - _BATCH_HEADER
            self._due = min(YIELD_EVERY, self._encoder.message_limit, room)

    def _seal(self) -> bytes:
        """The batch as a frame; the next one is begun."""
        count, batch = self._count, self._batch
        head = bytes((0x90 | count,)) if count < 16 else b"\xdd" + count.to_bytes(4, "big")
        size = len(_BATCH) + len(head) + len(batch)
        data = b"".join((size.to_bytes(PREFIX, "big"), _BATCH, head, batch))
        self._batch = bytearray()
        self._count = self._weight = 0
        return data

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
            self._meter.bytes_out += part.nbytes
            # A copy: the producer may use its buffer again before the turn's end.
            self._channel.write(self._stream, bytes(part))
            return
        self._out += part
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        if self._closed:
            return
        self._scheduled = False
        if self._count:
            data = self._seal()
            self._sent += len(data)
            self._out += data
            self._since_yield = 0
            self._set_due()
        self._flush()

    def _flush(self) -> None:
        if self._out:
            out, self._out = self._out, bytearray()
            self._meter.bytes_out += len(out)
            self._channel.write(self._stream, out)


class ItemReader:
    """Holds what has arrived, at most a window ahead of what was taken."""

    def __init__(self, channel: Channel, *, is_early: bool = False) -> None:
        """`is_early`: the call that the items belong to has not come yet. `begin` follows."""
        self._kind: ItemType | None = None
        self._meter: Meter | None = None
        self._is_early = is_early
        self._channel = channel
        self._window = CreditWindow(channel.window, channel.growth)
        self._loop = asyncio.get_running_loop()
        self._stream = -1
        self._attached = False
        self._rest = bytearray()  # the beginning of a frame
        self._ready: deque[Arrived] = deque()
        self._item: m.Item | None = None  # its buffers are arriving
        self._item_bytes = 0
        self._region = Region(0)
        self._arrived = self._taken = self._held = 0
        self._granted = channel.window
        self._since_yield = 0
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self.outcome: m.End | m.Failure | LatticaError | None = None

    @property
    def arrived(self) -> int:
        """Bytes so far."""
        return self._arrived

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is taken in."""
        return self._closed

    def attach(self, stream: int) -> None:
        """The data stream has arrived."""
        if self._attached:
            raise FrameError("two item streams for one call")
        self._attached = True
        self._stream = stream

    def begin(self, kind: ItemType | None, meter: Meter) -> None:
        """The call is known, and with it the type of the items. `meter` counts their bytes."""
        self._kind = kind
        self._meter = meter
        meter.bytes_in += self._arrived
        self._not_early()

    def _not_early(self) -> None:
        if self._is_early:
            self._is_early = False
            self._channel.count_early(-self._arrived)

    # ------------------------------------------------------------ from the link

    def feed(self, data: bytes, end: bool) -> None:
        """See `Sink`."""
        if self._closed:
            return
        self._arrived += len(data)
        if self._meter is not None:
            self._meter.bytes_in += len(data)
        if self._is_early:
            self._channel.count_early(len(data))
        if self._arrived > self._granted:
            raise FrameError("more bytes than the credit given")
        if self.outcome is not None and (data or not end):
            raise FrameError("bytes after the end of an item stream")
        at, size = 0, len(data)
        while at < size and not self._closed:
            at = self._frame(data, at) if self._item is None else self._buffers(data, at)
            if self.outcome is not None and at < size and not self._closed:
                raise FrameError("bytes after the end of an item stream")
        if end:
            self._stream = -1
            self._window.close()
            self.fail(StreamTruncatedError("the item stream ended before its end"))
        self._notify()

    def _frame(self, data: bytes, at: int) -> int:
        """Take in a frame or a part of one; where it ends."""
        rest = self._rest
        if not rest:
            start, stop = at + PREFIX, len(data)
            if stop >= start:
                end = start + self._size(data[at:start])
                if end <= stop:
                    self._message(data[start:end])
                    return end
            rest += data[at:]
            return stop
        if len(rest) < PREFIX:
            end = at + PREFIX - len(rest)
            rest += data[at:end]
        else:
            whole = PREFIX + self._size(rest[:PREFIX])
            end = at + whole - len(rest)
            rest += data[at:end]
            if len(rest) == whole:
                payload = bytes(memoryview(rest)[PREFIX:])
                self._rest = bytearray()
                self._message(payload)
        return min(end, len(data))

    def _size(self, prefix: bytes | bytearray) -> int:
        size, limit = int.from_bytes(prefix, "big"), self._channel.config.max_frame
        if not 0 < size <= limit:
            raise FrameError(f"a frame of {size} bytes; 1 to {limit} are allowed")
        return size

    def _message(self, payload: bytes) -> None:
        try:
            message = _decode(payload)
        except DECODE_ERRORS as error:
            raise FrameError(f"not an item: {error}") from None
        size = len(payload) + PREFIX
        if isinstance(message, m.Batch):
            self._ready.append(Arrived(message.items, size))
        elif isinstance(message, m.Item):
            total = sum(message.sizes)
            if total > self._channel.config.max_body:
                self.fail(self._wrong(f"an item of {total} bytes is larger than max_body"))
                self._stop()
            elif total:
                self._item, self._item_bytes = message, size + total
                self._region = Region(total)
            else:
                views = [memoryview(b"")] * len(message.sizes)
                self._ready.append(Arrived(message.value, size, False, views, message.spilled))
        else:
            self._taken += size
            self.outcome = message if isinstance(message, m.End) else message.failure

    def _wrong(self, text: str) -> RpcError:
        # Without a type yet: only a caller's items come before their call.
        return BadArgumentsError(text) if self._kind is None else self._kind.wrong(text)

    def _buffers(self, data: bytes, at: int) -> int:
        assert self._item is not None
        end = min(len(data), at + self._region.missing)
        try:
            self._region.write(memoryview(data)[at:end])
        except OSError as error:
            self.fail(self._wrong(f"an item of {self._item_bytes} bytes: {error.strerror}"))
            self._stop()
            return end
        if not self._region.missing:
            item, self._item = self._item, None
            views, self._region = self._region.views(item.sizes), Region(0)
            self._ready.append(Arrived(item.value, self._item_bytes, False, views, item.spilled))
        return end

    def cut(self, code: int) -> None:
        """See `Sink`."""
        self._stream = -1
        self._window.close()
        self.fail(StreamTruncatedError("the item stream was cut before its end"))

    # -------------------------------------------------------------- the consumer

    def fail(self, error: LatticaError | m.Failure) -> None:
        """End with `error`, after the items that have arrived whole."""
        if self.outcome is None:
            self.outcome = error
            self._stop()  # what is on its way is nobody's any more
        self._notify()  # also of an outcome that came in a frame which broke off the protocol

    def abandon(self, code: int = m.CANCELLED) -> None:
        """Take in no more; who waits for an item hears of an end."""
        self._not_early()
        self._ready.clear()
        if self.outcome is None:
            self.outcome = m.End()
        self._stop(code)
        self._notify()

    def _stop(self, code: int = m.CANCELLED) -> None:
        self._closed = True
        self._window.close()
        self._item, self._region = None, Region(0)
        self._rest = bytearray()
        if self._stream >= 0:
            self._channel.close_sink(self._stream, code)
            self._stream = -1

    async def next(self) -> list[Any] | m.End | m.Failure | LatticaError:
        """The next items, or how the stream ended."""
        self._taken += self._held
        self._held = 0
        if self._since_yield >= YIELD_EVERY:
            # Nor may a consumer that always finds an item ready keep the loop to itself.
            self._since_yield = 0
            await asyncio.sleep(0)
        while not self._ready:
            if self.outcome is not None:
                return self.outcome
            self._waiter = self._loop.create_future()
            self._grant()
            try:
                # Bounded by the call: its end, deadline or lost link is an outcome.
                await self._waiter
            finally:
                self._waiter = None
        arrived = self._ready.popleft()
        self._held = arrived.nbytes
        self._grant()
        assert self._kind is not None
        values, wrong = self._kind.decode(arrived)
        self._since_yield += arrived.nbytes + ITEM_COST * len(values)
        if wrong is not None:
            self._ready.clear()
            self.outcome = wrong
            self._stop()
            return values or wrong
        return values

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
        window = self._window.taken(taken, self._channel.link.rtt, self._loop.time())
        limit = taken + window
        if limit - self._granted >= window // 4:
            self._granted = limit
            self._channel.send(m.Credit(self._stream, limit))
