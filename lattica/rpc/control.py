"""The control messages that one end sends: those of a turn share a write, and wait their turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from lattica.config import KIB, MIB
from lattica.errors import FrameError, LinkLostError
from lattica.rpc import messages as m
from lattica.rpc.codec import Encoder
from lattica.rpc.framing import Batch
from lattica.rpc.interface import Wire

CONTROL_WINDOW = 4 * MIB  # control bytes sent but not acknowledged, before senders wait
CONTROL_LIMIT = 64 * MIB  # the same, where the other end makes us answer and takes nothing in
BATCH = 32 * KIB  # bytes of control messages in one frame, about


class Control:
    """Sends control messages on one stream of a link."""

    def __init__(self, wire: Wire, flushed: Callable[[], None]) -> None:
        """`flushed` is told when all messages so far went to the link."""
        self._wire = wire
        self._flushed = flushed
        self._loop = asyncio.get_running_loop()
        link, max_frame = wire.link, wire.config.max_frame
        self.stream = link.open_stream(unidirectional=False) if link.is_dialer else -1
        self.encoder = Encoder(inline_limit=wire.config.inline_limit, message_limit=max_frame // 2)
        self._batch = Batch(min(BATCH, max_frame // 4))
        self._scheduled = False
        self.is_full = False  # the other end is behind: call `room` before sending more
        self._sent = self._acked = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._resuming = 0  # woken, and about to send

    @property
    def is_writing(self) -> bool:
        """Whether messages wait to be written."""
        return bool(len(self._batch))

    def begin(self, stream: int) -> None:
        """The other end has opened the stream."""
        self.stream = stream
        self._flush()

    def send(self, message: m.Control) -> None:
        """Queue a message; all of one turn of the loop leave in one write."""
        if self._wire.error is None and not self.post(message):
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
            self._wire.link.before_flush(self._flush)
        return nbytes

    async def room(self) -> None:
        """Wait, first come first served, until the other end has caught up.

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
                self._loop.call_soon(self.wake)  # once this one has sent
        if self._wire.error is not None:
            raise LinkLostError(str(self._wire.error))

    def acknowledged(self, received: int) -> None:
        """The other end has taken so many bytes in.

        Raises:
            FrameError: they were never sent.
        """
        if not self._acked <= received <= self._sent:
            raise FrameError("an acknowledgement of what was not sent")
        self._acked = received
        self.wake()

    def wake(self) -> None:
        """Let those go on that wait for room, if there is some or the link is gone."""
        while (
            self._waiting
            and not self._resuming
            and (self._wire.error is not None or self._unacknowledged <= CONTROL_WINDOW)
        ):
            waiter = self._waiting.popleft()
            self._resuming += 1
            if not waiter.done():
                waiter.set_result(None)
        self._check_full()

    @property
    def _unacknowledged(self) -> int:
        return self._sent + len(self._batch) - self._acked

    def _check_full(self) -> None:
        self.is_full = bool(
            self._waiting or self._resuming or self._unacknowledged > CONTROL_WINDOW
        )

    def _flush(self) -> None:
        self._scheduled = False
        if self._wire.error is not None or self.stream < 0 or not len(self._batch):
            return
        if self._unacknowledged > CONTROL_LIMIT:
            self._wire.broken(FrameError("the other end takes nothing in"))
            return
        out = self._batch.take()
        self._sent += len(out)
        self._check_full()
        self._wire.write(self.stream, out, lent=True)
        if self._wire.error is None:
            self._flushed()
