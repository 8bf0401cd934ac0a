"""One call being served."""

from __future__ import annotations

import asyncio
from typing import Protocol

from lattica.rpc import messages as m
from lattica.rpc.bodies import BodyReceiver
from lattica.rpc.context import CallContext
from lattica.rpc.registry import Handler


class Owner(Protocol):
    """Who is told what becomes of a call."""

    def cancel(self, call: int) -> None:
        """Nobody wants the outcome any more."""
        ...

    def body_done(self, served: Served, problem: str) -> None:
        """All buffers have arrived, or will not."""
        ...


class Served:
    """A call from its arrival to its outcome."""

    __slots__ = (
        "body",
        "context",
        "handler",
        "is_cancelled",
        "message",
        "nbytes",
        "owner",
        "slot",
        "started",
        "task",
    )

    def __init__(
        self,
        owner: Owner,
        message: m.Call,
        handler: Handler,
        context: CallContext,
        nbytes: int,
    ) -> None:
        self.owner = owner
        self.message = message
        self.handler = handler
        self.context = context
        self.body: BodyReceiver | None = None
        self.task: asyncio.Task[None] | None = None
        self.started = False
        self.is_cancelled = False
        self.slot = -1
        self.nbytes = nbytes

    def expire(self) -> None:
        """The deadline has passed: the caller knows by its own clock."""
        self.owner.cancel(self.message.call)

    def body_done(self, problem: str) -> None:
        """All buffers have arrived, or will not."""
        self.owner.body_done(self, problem)


def size_of(message: m.Call) -> int:
    """Bytes of a call's arguments."""
    return len(memoryview(message.args)) + sum(message.sizes)
