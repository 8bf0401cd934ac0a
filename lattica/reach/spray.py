"""When a guessed port is sent to and when a further socket is opened. Time is an argument."""

from __future__ import annotations

from collections.abc import Iterator

from lattica.config import PunchConfig
from lattica.reach.guesses import guesses, steps
from lattica.reach.plan import Punch, Side
from lattica.reach.report import NatReport

NEVER = float("inf")
MAX_AT_ONCE = 32  # after a late look at the clock, for the sake of routers' queues


class Spray:
    """The guesses of one side in one attempt, at their rate.

    Attributes:
        due: when `take` has something; infinite at the end.
        taken: how many ports it gave.
    """

    def __init__(
        self,
        side: Side,
        other: NatReport,
        start: float,
        *,
        seed: int,
        config: PunchConfig | None = None,
    ) -> None:
        """`start` is when the first guess leaves: the attempt's begin and its plan's delay."""
        self._config = config or PunchConfig()
        self._side = side
        self._ports: Iterator[int] = (
            steps(other, side.stride) if side.stride else guesses(other, seed)
        )
        self._allowed = min(side.guesses, self._config.max_packets)
        self.taken = 0
        self.due = start if self._allowed else NEVER

    def take(self, now: float) -> list[int]:
        """The ports to send to now."""
        ports: list[int] = []
        while self.due <= now and len(ports) < MAX_AT_ONCE:
            port = next(self._ports, None)
            if port is None:
                self.due = NEVER
                break
            ports.append(port)
            self.taken += 1
            self.due = self.due + 1 / self._rate if self.taken < self._allowed else NEVER
        if len(ports) == MAX_AT_ONCE:
            self.due = max(self.due, now)  # what was missed is not made up for
        return ports

    @property
    def _rate(self) -> float:
        is_likely = self.taken < self._side.likely
        return self._config.likely_rate if is_likely else self._config.guess_rate


class Openings:
    """When one side opens its further sockets, and when each of them sends again.

    Attributes:
        due: when `take` has something; infinite at the end.
    """

    def __init__(
        self, punch: Punch, side: Side, begin: float, config: PunchConfig | None = None
    ) -> None:
        self._config = config or PunchConfig()
        self._sockets = side.sockets
        self._opened = 0
        self._repeats: list[float] = []  # by socket, when it sends next
        self._end = begin + self._config.patience
        self.due = begin + punch.delay if side.sockets else NEVER
        self._next_opening = self.due

    def take(self, now: float) -> list[int]:
        """The numbers (from 0) of the sockets that send now; new ones are to be opened first."""
        if now >= self._end:
            self.due = NEVER
            return []
        sending: list[int] = []
        for number, at in enumerate(self._repeats):
            if at <= now:
                sending.append(number)
                self._repeats[number] = now + self._config.repeat_every
        while self._next_opening <= now and self._opened < self._sockets:
            sending.append(self._opened)
            self._repeats.append(now + self._config.repeat_every)
            self._opened += 1
            self._next_opening += 1 / self._config.open_rate
        opening = self._next_opening if self._opened < self._sockets else NEVER
        self.due = min([opening, *self._repeats])
        return sending
