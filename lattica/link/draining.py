"""A link's graceful end: nothing new begins on it, what is in flight is let finish.

One end says on stream 0 that it is going away. From then on neither end offers the link
for new work, while calls and streams in flight go on. When the end that leaves has
nothing left to send, nothing unacknowledged and a handler that is idle, it closes.
"""

from __future__ import annotations

import anyio

from lattica.link.interface import Drainable
from lattica.link.messages import LENGTH, MAX_REASON
from lattica.link.refusals import printable


class Draining:
    """The end that leaves.

    Attributes:
        is_over: the link is closed.
        is_complete: and all that was in flight was done before.
    """

    def __init__(self, reason: str, deadline: float) -> None:
        """At `deadline`, in seconds of the loop's clock, what is not done yet is given up."""
        self.reason = reason
        self.deadline = deadline
        self.is_over = anyio.Event()
        self.is_complete = False

    def message(self) -> bytes:
        """What the other end is told."""
        body = self.reason.encode()[:MAX_REASON]
        return len(body).to_bytes(LENGTH, "big") + body


def is_idle(handler: object) -> bool:
    """Whether a handler has nothing in flight, as far as it can tell."""
    return not isinstance(handler, Drainable) or handler.is_idle


class Farewell:
    """The end that stays: takes in what the other says before it goes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive(self, data: bytes) -> str | None:
        """Take in bytes of stream 0; the reason, once it is complete.

        Raises:
            ValueError: this is no farewell.
        """
        self._buffer += data
        if len(self._buffer) < LENGTH:
            return None
        length = int.from_bytes(self._buffer[:LENGTH], "big")
        if not 0 < length <= MAX_REASON or len(self._buffer) > LENGTH + length:
            raise ValueError("unexpected bytes on the link's own stream")
        if len(self._buffer) < LENGTH + length:
            return None
        return printable(bytes(self._buffer[LENGTH:]).decode(errors="replace"))
