"""What a channel and those that use it ask of each other."""

from __future__ import annotations

from typing import Protocol

from lattica.config import RpcConfig
from lattica.errors import FrameError, LinkError
from lattica.link.interface import Link
from lattica.rpc import messages as m


class Wire(Protocol):
    """A link as the parts of a channel use it."""

    link: Link
    config: RpcConfig
    error: LinkError | None  # the link is gone

    def write(
        self,
        stream: int,
        data: bytes | bytearray | memoryview,
        *,
        end: bool = False,
        lent: bool = False,
    ) -> None:
        """Write to the link (see there); a lost link is told through `link_lost`, not here."""
        ...

    def broken(self, error: FrameError) -> None:
        """The other end broke the protocol: close the link."""
        ...

    def link_lost(self, error: LinkError) -> None:
        """The link turned out to be gone."""
        ...


class Sink(Protocol):
    """Takes in one data stream."""

    def feed(self, data: bytes, end: bool) -> None:
        """Bytes in order. Raises FrameError for what must not be."""
        ...

    def cut(self, code: int) -> None:
        """The sender gave the stream up."""
        ...


class Source(Protocol):
    """Sends one data stream."""

    is_written: bool  # all of it went to the link

    def grant(self, limit: int) -> None:
        """The receiver allows `limit` bytes in all."""
        ...

    def stopped(self, code: int) -> None:
        """The receiver wants no more."""
        ...


class Body(Source, Protocol):
    """A data stream of known size that waits for its turn."""

    nbytes: int
    is_over: bool

    def start(self) -> int:
        """Open the stream; its id."""
        ...


class Receiver(Protocol):
    """A body that arrives."""

    def resume(self) -> None:
        """It may have credit now."""
        ...


class Events(Protocol):
    """What the channel tells the layer above."""

    @property
    def is_idle(self) -> bool:
        """Whether no call is in flight, either way."""
        ...

    def call(self, message: m.Call) -> None:
        """The peer calls."""
        ...

    def result(self, message: m.Result) -> None:
        """A call of ours has returned."""
        ...

    def failure(self, message: m.Failure) -> None:
        """A call of ours has failed."""
        ...

    def cancel(self, message: m.Cancel) -> None:
        """The peer wants an outcome no more."""
        ...

    def claim(self, header: m.Header, stream: int) -> Sink | None:
        """Who takes this data stream in; None: nobody wants it any more."""
        ...

    def flushed(self) -> None:
        """All messages queued so far went to the link."""
        ...

    def lost(self, error: LinkError) -> None:
        """The link is gone."""
        ...

    def bad_frame(self, error: FrameError) -> None:
        """The other end broke the protocol; the link is being closed."""
        ...
