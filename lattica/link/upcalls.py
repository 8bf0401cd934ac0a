"""A link's calls of its handler: kept until there is one, and contained if it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lattica.errors import LinkError
from lattica.link.early import EarlyEvents
from lattica.link.interface import LinkHandler


class Upcalls:
    """Events go to the handler in the order in which they came, the link's loss last.

    Attributes:
        handler: takes events; None before it is there, and once the link is lost.
    """

    __slots__ = ("_early", "_error", "_failed", "_loop", "handler")

    def __init__(self, loop: asyncio.AbstractEventLoop, failed: Callable[[], None]) -> None:
        """`failed` is called while the handler's exception is being handled."""
        self._loop = loop
        self._failed = failed
        self._early = EarlyEvents()
        self._error: LinkError | None = None
        self.handler: LinkHandler | None = None

    def begin(self, handler: LinkHandler) -> None:
        """There is a handler: hand over what has come meanwhile."""
        if self._error is not None:  # whoever made it has closed the link already
            self._loop.call_soon(handler.link_lost, self._error)
            return
        self.handler = handler
        for event in self._early.take():
            self.event(event)

    def event(self, call: Callable[[LinkHandler], None], size: int = 0) -> bool:
        """Something of `size` bytes has come; False if too much is kept."""
        if self._error is not None:
            return True  # an earlier event has closed the link
        if self.handler is None:
            return self._early.add(call, size)
        try:
            call(self.handler)
        except Exception:  # noqa: BLE001  (a bug above must not cost other links their packets)
            self._failed()
        return True

    def finish(self, error: LinkError) -> None:
        """The link is lost."""
        self._error = error
        self._early.take()
        if self.handler is not None:
            # Not from within: this may be a handler's own call of `close`.
            self._loop.call_soon(self.handler.link_lost, error)
            self.handler = None
