"""Sends an item stream, never more than the receiver's credit ahead."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from lattica.rpc import messages as m
from lattica.rpc.channel import Channel
from lattica.rpc.codec import ENCODE_ERRORS, Encoder
from lattica.rpc.framing import PREFIX, frame
from lattica.rpc.itemtypes import ITEM_COST, YIELD_EVERY, ItemType
from lattica.rpc.meter import Meter

_BATCH = b"\x92\x03"  # a `Batch`: an array of its tag and the items
_BATCH_HEADER = PREFIX + len(_BATCH) + 5  # bytes around a batch, at most
_encode = msgspec.msgpack.Encoder().encode


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
        self._limit = channel.sending.window
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
        self._stream = channel.sending.open_source(self, header)
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
        self._channel.sending.close_source(self._stream)

    def abandon(self) -> None:
        """Give the stream up where it has not ended."""
        if not self._closed:
            self._close()
            self._channel.sending.close_source(self._stream, reset=m.CANCELLED)

    def grant(self, limit: int) -> None:
        """See `Source`."""
        self._channel.sending.check_credit(self._stream, limit, self._sent)
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
