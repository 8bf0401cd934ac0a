"""The host's end of the pipe to a worker, on the event loop.

Not an asyncio transport: that drops what has arrived but was not read when a write fails, and
a worker's last outcomes decide which of its calls can have begun when it died.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from lattica.actors.pipe import FrameDecoder
from lattica.errors import FrameError

_PARTS = 64  # written by one system call


class PipeSocket:
    """Reads and writes independently: the one may end before the other."""

    def __init__(
        self,
        sock: socket.socket,
        decoder: FrameDecoder[Any],
        on_message: Callable[[Any], None],
        on_violation: Callable[[FrameError], None],
    ) -> None:
        """`on_message` may raise FrameError too; after a violation nothing more is read."""
        self._sock = sock
        self._decoder = decoder
        self._on_message = on_message
        self._on_violation = on_violation
        self._loop = asyncio.get_running_loop()
        self._queue: deque[memoryview] = deque()
        self._is_waiting = False  # for room to write
        self._is_writable = True
        self.ended = asyncio.Event()  # nothing more will be read
        sock.setblocking(False)
        self._loop.add_reader(sock, self._on_readable)

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        """Queue one frame. What a dead worker does not read is forgotten."""
        if not self._is_writable:
            return
        self._queue.extend(memoryview(part) for part in parts if len(part))
        if not self._is_waiting:
            self._flush()

    def drain(self) -> None:
        """Read what has arrived. Of a process that has ended, that is all it ever sent."""
        while self._on_readable():
            pass

    def close(self) -> None:
        """Neither read nor write again."""
        self._stop_writing()
        self._stop_reading()
        self._sock.close()

    def _flush(self) -> None:
        try:
            while self._queue:
                self._sent(self._sock.sendmsg(list(islice(self._queue, _PARTS))))
        except BlockingIOError:
            if not self._is_waiting:
                self._is_waiting = True
                self._loop.add_writer(self._sock, self._flush)
            return
        except OSError:  # the worker has ended; what it said before is still to be read
            self._stop_writing()
            return
        if self._is_waiting:
            self._is_waiting = False
            self._loop.remove_writer(self._sock)

    def _sent(self, count: int) -> None:
        while count:
            first = self._queue.popleft()
            if first.nbytes > count:
                self._queue.appendleft(first[count:])
                return
            count -= first.nbytes

    def _on_readable(self) -> bool:
        """Read once; False: there is nothing (more) now."""
        if self.ended.is_set():
            return False
        try:
            count = self._sock.recv_into(self._decoder.get_buffer())
        except BlockingIOError:
            return False
        except OSError:  # a reset comes after the last byte
            count = 0
        if count == 0:
            self._stop_reading()
            return False
        try:
            for message in self._decoder.received(count):
                self._on_message(message)
        except FrameError as error:
            self._stop_reading()
            self._on_violation(error)
        return True

    def _stop_reading(self) -> None:
        if not self.ended.is_set():
            self.ended.set()
            self._loop.remove_reader(self._sock)

    def _stop_writing(self) -> None:
        self._is_writable = False
        self._queue.clear()
        if self._is_waiting:
            self._is_waiting = False
            self._loop.remove_writer(self._sock)
