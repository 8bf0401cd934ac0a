"""One call in flight, as its caller's end keeps it."""

from __future__ import annotations

import asyncio
from typing import Any

from lattica.errors import LatticaError
from lattica.rpc import messages as m
from lattica.rpc.bodies import BodyReceiver, BodySender
from lattica.rpc.item_reader import ItemReader
from lattica.rpc.meter import CalledMeter


class Pending:
    """A call from its sending to its outcome."""

    __slots__ = (
        "body",
        "call",
        "deadline",
        "future",
        "into",
        "items",
        "landed",
        "meter",
        "result",
        "sender",
    )

    def __init__(
        self, call: int, future: asyncio.Future[Any], deadline: float, meter: CalledMeter
    ) -> None:
        self.call = call
        self.future = future
        self.deadline = deadline
        self.meter = meter
        self.into: tuple[memoryview, ...] = ()  # where the buffers of the result go
        self.landed = False  # they arrived there
        self.sender: BodySender | None = None
        self.body: BodyReceiver | None = None
        self.result: m.Result | None = None
        self.items: ItemReader | None = None

    def settle(self, outcome: m.Result | m.Failure | LatticaError) -> None:
        """Give the call its one outcome."""
        if self.items is not None:
            assert not isinstance(outcome, m.Result)
            self.items.fail(outcome)
        elif not self.future.done():
            # Always a result, never set_exception: a caller cancelled in the same turn
            # would leave an exception that nobody retrieves.
            self.future.set_result(outcome)
            if self.body is not None and self.into and type(outcome) is not m.Result:
                self.body.detach()
