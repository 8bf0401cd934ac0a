"""One call being served."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from lattica.link.interface import RemotePeer
from lattica.rpc import messages as m
from lattica.rpc.bodies import BodyReceiver
from lattica.rpc.context import CallContext
from lattica.rpc.item_reader import ItemReader
from lattica.rpc.registry import Handler
from lattica.rpc.work import Outcome


class Owner(Protocol):
    """Who is told what becomes of a call."""

    def body_done(self, served: Served, problem: str) -> None:
        """All buffers have arrived, or will not."""
        ...

    def start(self, served: Served) -> None:
        """There is a place for the call, and it is taken."""
        ...

    def refuse(self, served: Served) -> None:
        """The call found no place."""
        ...


class Served:
    """A call from its arrival to its outcome."""

    __slots__ = (
        "arguments",
        "arrived",
        "began",
        "body",
        "call",
        "deadline",
        "handler",
        "has_failed",
        "is_cancelled",
        "is_waiting",
        "items",
        "message",
        "nbytes",
        "owner",
        "remote",
        "started",
        "task",
        "trace",
        "work",
    )

    def __init__(
        self,
        owner: Owner,
        call: int,
        handler: Handler,
        remote: RemotePeer,
        nbytes: int,
        arrived: float,
        deadline: float,
        trace: bytes,
    ) -> None:
        """`arrived` and `deadline` are on the loop's clock, in seconds."""
        self.owner = owner
        self.call = call
        self.handler = handler
        self.remote = remote
        self.deadline = deadline
        self.trace = trace
        self.nbytes = nbytes
        self.arrived = arrived
        self.began = arrived
        self.arguments: Any = None  # decoded
        self.message: m.Call | None = None  # while its buffers are awaited
        self.body: BodyReceiver | None = None
        self.items: ItemReader | None = None  # those that the caller sends
        self.task: asyncio.Task[None] | None = None  # while its handler runs
        self.work: asyncio.Future[Outcome] | None = None  # outside of the loop
        self.started = False  # it has a place, and its handler runs or is about to
        self.is_waiting = False
        self.is_cancelled = False
        self.has_failed = False  # and is counted as such

    @property
    def context(self) -> CallContext:
        """What the handler may know."""
        remote = self.remote
        return CallContext(
            remote.peer, remote.scopes, remote.name, self.deadline, remote.root, self.trace
        )

    def failed(self, kind: str) -> None:
        """Count an outcome that is no value; only the first that there is."""
        if not self.has_failed:
            self.has_failed = True
            self.handler.meter.failed(kind)

    def body_done(self, problem: str) -> None:
        """All buffers have arrived, or will not."""
        self.owner.body_done(self, problem)

    def start(self) -> None:
        """See `Waiting`."""
        self.owner.start(self)

    def refuse(self) -> None:
        """See `Waiting`."""
        self.owner.refuse(self)
