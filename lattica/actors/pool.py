"""Idle task workers, kept for the next task of the same submitter and shape."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from lattica.actors.worker_process import WorkerProcess
from lattica.clock import Clock
from lattica.identity.keys import PeerId


class WorkerKey(msgspec.Struct, frozen=True):
    """Workers of one key are interchangeable."""

    peer: PeerId  # whose code has run in it: never another's afterwards
    memory: int = 0
    gpus: tuple[int, ...] = ()
    threads: int = 1


class Pool:
    """Hands out workers, old ones first."""

    def __init__(
        self,
        start: Callable[[WorkerKey], Awaitable[WorkerProcess]],
        clock: Clock,
        *,
        max_idle: int,
        idle_seconds: float,
    ) -> None:
        self._start = start
        self._clock = clock
        self._max_idle = max_idle
        self._idle_seconds = idle_seconds
        self._idle: list[tuple[float, WorkerKey, WorkerProcess]] = []  # oldest first

    def __len__(self) -> int:
        return len(self._idle)

    async def take(self, key: WorkerKey) -> WorkerProcess:
        """An idle worker of this key, or a new one.

        Raises:
            ActorsError: none could be started.
        """
        for index in range(len(self._idle) - 1, -1, -1):
            _, idle_key, worker = self._idle[index]
            if idle_key == key:
                del self._idle[index]
                if worker.is_alive:
                    return worker
        return await self._start(key)

    def give_back(self, key: WorkerKey, worker: WorkerProcess) -> None:
        """Keep a worker for later, or end it."""
        if not worker.is_alive:
            return
        self._idle.append((self._clock.monotonic(), key, worker))
        while len(self._idle) > self._max_idle:
            self._idle.pop(0)[2].kill()

    def trim(self) -> None:
        """End those that have been idle for long."""
        limit = self._clock.monotonic() - self._idle_seconds
        while self._idle and self._idle[0][0] < limit:
            self._idle.pop(0)[2].kill()
