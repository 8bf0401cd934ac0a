"""What a handler may know about the call it serves."""

from __future__ import annotations

import contextvars
from typing import Protocol

import msgspec

from lattica.identity.keys import PeerId


class CallContext(msgspec.Struct, frozen=True):
    """Who calls, and until when an answer is of use."""

    peer: PeerId
    scopes: frozenset[str]  # granted to the peer; empty for a stranger
    name: str  # what the peer calls itself
    deadline: float  # on the event loop's clock, seconds; inf: none
    root: PeerId | None = None  # whom the mesh's authority let in, and this peer through it
    trace: bytes = b""  # 16 bytes that name the work this call is part of; may be empty

    @property
    def context(self) -> CallContext:
        """Itself, as of any call."""
        return self


class HasContext(Protocol):
    """A call that tells what its handler may know, if asked: few handlers do."""

    @property
    def context(self) -> CallContext:
        """It."""
        ...


current_call: contextvars.ContextVar[HasContext] = contextvars.ContextVar("lattica_call")
trace_id: contextvars.ContextVar[bytes] = contextvars.ContextVar("lattica_trace", default=b"")


def caller() -> CallContext:
    """The call that the current task serves.

    Raises:
        LookupError: not inside a handler.
    """
    try:
        return current_call.get().context
    except LookupError:
        raise LookupError("caller() works only inside a handler") from None
