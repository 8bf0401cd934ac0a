"""Both sides of the calls on one link."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from lattica.config import RpcConfig
from lattica.errors import FrameError, LinkError
from lattica.link.interface import Link
from lattica.rpc import messages as m
from lattica.rpc.calls import Calls
from lattica.rpc.channel import Channel
from lattica.rpc.interface import Sink
from lattica.rpc.registry import Registry
from lattica.rpc.serving import Serving
from lattica.rpc.statistics import SessionStats

log = logging.getLogger("lattica.rpc")


class Session:
    """Implements the channel's `Events`."""

    def __init__(
        self,
        link: Link,
        config: RpcConfig,
        registry: Registry,
        tasks: asyncio.TaskGroup,
        forget: Callable[[Session], None],
    ) -> None:
        """`forget` is called once, when the link is gone."""
        self.link = link
        self._registry = registry
        self._forget = forget
        self.channel = Channel(link, config, self)
        self.calls = Calls(self.channel, tasks)
        self.serving = Serving(self.channel, registry, tasks)

    @property
    def is_idle(self) -> bool:
        """See `Events`."""
        return not len(self.calls) and not len(self.serving)

    def call(self, message: m.Call) -> None:
        """See `Events`."""
        self.serving.call(message)

    def result(self, message: m.Result) -> None:
        """See `Events`."""
        self.calls.result(message)

    def failure(self, message: m.Failure) -> None:
        """See `Events`."""
        self.calls.failure(message)

    def cancel(self, message: m.Cancel) -> None:
        """See `Events`."""
        self.serving.cancel(message.call)

    def claim(self, header: m.Header, stream: int) -> Sink | None:
        """See `Events`."""
        claim = self.calls.claim if header.of_result else self.serving.claim
        return claim(header, stream)

    def flushed(self) -> None:
        """See `Events`."""
        self.calls.flushed()

    def bad_frame(self, error: FrameError) -> None:
        """See `Events`."""
        self._registry.counters["bad_frame"] += 1
        log.warning("closing the link to %s: %s", self.link.remote.peer.short, error)

    def lost(self, error: LinkError) -> None:
        """See `Events`."""
        self._forget(self)
        self.calls.lost(error)
        self.serving.lost()

    def stats(self) -> SessionStats:
        """How it does."""
        remote = self.link.remote
        return SessionStats(
            peer=remote.peer,
            name=remote.name,
            calls_out=len(self.calls),
            calls_in=len(self.serving),
            arguments_in=self.serving.held,
            link=self.link.statistics(),
        )

    def __repr__(self) -> str:
        peer = self.link.remote.peer.short
        return f"Session({peer}, {len(self.calls)} calls out, {len(self.serving)} in)"
