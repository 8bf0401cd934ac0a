"""Takes an item stream in, and grants as much credit as its consumer has taken."""

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
from lattica.rpc.codec import DECODE_ERRORS
from lattica.rpc.credit import CreditWindow
from lattica.rpc.framing import PREFIX
from lattica.rpc.itemtypes import ITEM_COST, YIELD_EVERY, Arrived, ItemType
from lattica.rpc.meter import Meter
from lattica.rpc.regions import Region

_decode = msgspec.msgpack.Decoder(m.StreamFrame).decode


class ItemReader:
    """Holds what has arrived, at most a window ahead of what was taken."""

    def __init__(self, channel: Channel, *, is_early: bool = False) -> None:
        """`is_early`: the call that the items belong to has not come yet. `begin` follows."""
        self._kind: ItemType | None = None
        self._meter: Meter | None = None
        self._is_early = is_early
        self._channel = channel
        self._window = CreditWindow(channel.receiving.window, channel.receiving.growth)
        self._loop = asyncio.get_running_loop()
        self._stream = -1
        self._attached = False
        self._rest = bytearray()  # the beginning of a frame
        self._ready: deque[Arrived] = deque()
        self._item: m.Item | None = None  # its buffers are arriving
        self._item_bytes = 0
        self._region = Region(0)
        self._arrived = self._taken = self._held = 0
        self._granted = channel.receiving.window
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
            self._channel.receiving.count_early(-self._arrived)

    # ------------------------------------------------------------ from the link

    def feed(self, data: bytes, end: bool) -> None:
        """See `Sink`."""
        if self._closed:
            return
        self._arrived += len(data)
        if self._meter is not None:
            self._meter.bytes_in += len(data)
        if self._is_early:
            self._channel.receiving.count_early(len(data))
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
            self._channel.receiving.close_sink(self._stream, code)
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
        window = self._window.taken(taken, self._channel.link.statistics, self._loop.time())
        limit = taken + window
        if limit - self._granted >= window // 4:
            self._granted = limit
            self._channel.control.send(m.Credit(self._stream, limit))
