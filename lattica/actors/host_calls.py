"""One call of an actor's method, from its arrival to its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lattica.actors import pipe_messages as pm
from lattica.actors.messages import ActorCall, Failure, Outcome, Value
from lattica.actors.worker_process import StreamSink, WorkerProcess
from lattica.identity.keys import PeerId


class HostedCall:
    """Waits in a mailbox, then in a worker; a sink for what the worker says of it."""

    def __init__(self, caller: PeerId, message: ActorCall, window: int) -> None:
        self.caller = caller
        self.message = message
        self.values: tuple[Value, ...] = ()
        self.number = 0  # in the worker; 0: not sent
        self.worker: WorkerProcess | None = None
        self.on_finish: Callable[[HostedCall], None] | None = None
        self.on_lost: Callable[[HostedCall, bool], None] | None = None
        self.outcomes: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        self.window = window if message.stream is not None else 0
        self.stream = StreamSink(window, self._credit) if self.window else None

    @property
    def is_finished(self) -> bool:
        """Whether the outcome is known."""
        return self.stream.is_ended if self.stream is not None else self.outcomes.done()

    def to_worker(self, worker: WorkerProcess) -> pm.Call:
        """What the worker is sent."""
        self.worker, self.number = worker, worker.next_call()
        message = self.message
        return pm.Call(
            self.number,
            message.method,
            message.args,
            self.values,
            len(message.returns),
            self.window,
        )

    def fail(self, failure: Failure) -> None:
        """The outcome is a failure."""
        if self.is_finished:
            return
        if self.stream is not None:
            self.stream.item(failure)
            self.stream.end()
        else:
            # A call without returns has no place for it, but its maker may wait for the end.
            self.outcomes.set_result([failure] * len(self.message.returns))

    def done(self, outcomes: tuple[Outcome, ...]) -> bool:
        """See `Sink`."""
        if self.stream is not None or len(outcomes) != len(self.message.returns):
            return False
        if not self.outcomes.done():
            self.outcomes.set_result(list(outcomes))
        self._finish()
        return True

    def item(self, outcome: Outcome) -> bool:
        """See `Sink`."""
        return self.stream is not None and self.stream.item(outcome)

    def end(self) -> None:
        """See `Sink`."""
        if self.stream is not None:
            self.stream.end()
        elif not self.outcomes.done():
            self.outcomes.set_result([])
        self._finish()

    def lost(self, cause: str, *, is_first: bool) -> None:
        """See `Sink`."""
        if self.on_lost is not None:
            self.on_lost(self, is_first)

    def _finish(self) -> None:
        if self.on_finish is not None:
            self.on_finish(self)

    def _credit(self, items: int) -> None:
        if self.worker is not None:
            self.worker.credit(self.number, items)
