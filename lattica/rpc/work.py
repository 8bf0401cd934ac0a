"""A handler at work outside of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from lattica.rpc.admission import Limit


class Outcome(NamedTuple):
    """How it ended: with a value, or with an error."""

    value: Any
    error: BaseException | None


class Work:
    """A function that runs elsewhere; it may go on when its caller has gone."""

    __slots__ = ("_stop", "done")

    def __init__(self, done: asyncio.Future[Outcome], stop: Callable[[], None]) -> None:
        """`done` is set once nothing of it runs any more. `stop` asks for that, if it can."""
        self.done = done
        self._stop = stop

    async def result(self) -> Any:
        """What the function returns; raises what it raises. Cancelled, it stops what it can."""
        try:
            # Bounded by the call's deadline, which cancels the task that waits here.
            value, error = await asyncio.shield(self.done)
        except asyncio.CancelledError:
            if not self.done.done():
                self._stop()
            raise
        if error is not None:
            raise error
        return value


class Pool(Protocol):
    """Threads or processes, as many as `limit` says. The caller keeps to the limit."""

    limit: Limit

    def run(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Work:
        """Start `function` in a copy of the current context."""
        ...
