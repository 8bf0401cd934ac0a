"""An event loop whose time jumps to the next timer: a minute of protocol in milliseconds.

For simulations and tests of what runs on timers and in-memory networks. Real sockets and
threads work, but the time that they take does not pass here: while something runs in the loop's
executor, as by `asyncio.to_thread`, time stands.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
STUCK_AFTER = 5.0  # real seconds without a timer or a sign from outside
FOREVER = 24 * 3600.0  # seconds; the loop asks for no longer wait, even for a timer at infinity


class VirtualLoop(asyncio.SelectorEventLoop):
    """Use as a loop factory: `anyio.run(main, backend_options={"loop_factory": VirtualLoop})`."""

    def __init__(self, *, start: float = 1000.0) -> None:
        self._now = start
        self.threads = 0  # that work for this loop
        super().__init__(_Jumping(self))
        self._clock_resolution = 1e-6  # else rounding makes a due timer wait for a turn

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Time stands until it is done."""
        future = super().run_in_executor(executor, func, *args)
        self.threads += 1
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, _: asyncio.Future[Any]) -> None:
        self.threads -= 1

    def advance(self, seconds: float) -> None:
        """Let time pass: all timers that this makes due fire in the next turn, as after a stall."""
        self._now += seconds


class _Jumping(selectors.BaseSelector):
    """Asks the real selector without waiting, and moves the clock where it would wait."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if ready or timeout == 0:
            return ready
        if self._loop.threads or timeout is None or timeout >= FOREVER:
            ready = self._real.select(STUCK_AFTER)
            if not ready:
                raise RuntimeError("nothing will ever happen: no timer is set, no task can run")
            return ready
        self._loop.advance(timeout)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def close(self) -> None:
        self._real.close()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()
