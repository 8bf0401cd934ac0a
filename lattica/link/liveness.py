"""When to ask whether the other end is there, and when to stop believing it. No I/O.

Silence counts only while this end was able to listen: a loop that was busy elsewhere
has heard nothing either, so its lateness is added to the deadline.
"""

from __future__ import annotations

from enum import Enum

from lattica.config import LinkConfig

HINT_PATIENCE = 0.25  # seconds to answer after the network said that nobody is there


class Verdict(Enum):
    """What a look at the clock calls for."""

    FINE = "fine"
    PING = "ping"
    DEAD = "dead"


class Liveness:
    """One link's pulse. Times in seconds of one monotonic clock."""

    def __init__(self, config: LinkConfig, now: float) -> None:
        self._heartbeat = config.heartbeat
        self._dead_after = config.dead_after
        # Two heartbeats and a bit, or half the way from the first to the end if that is sooner.
        self._suspect_after = min(
            2.5 * config.heartbeat, (config.heartbeat + config.dead_after) / 2
        )
        self._heard = now
        self._asked = now
        self._hint_deadline: float | None = None

    @property
    def is_hinted(self) -> bool:
        """Whether the network has said that nobody is there, and nothing was heard since."""
        return self._hint_deadline is not None

    def is_suspect(self, now: float) -> bool:
        """Whether a sign of life is overdue, or the network has said that nobody is there."""
        return self._hint_deadline is not None or now - self._heard >= self._suspect_after

    @property
    def heard(self) -> float:
        """When the other end was last heard of."""
        return self._heard

    def on_heard(self, now: float) -> None:
        """An authentic packet arrived."""
        self._heard = now
        self._hint_deadline = None

    def on_hint(self, now: float) -> Verdict:
        """The network says that nobody listens there. Anybody can forge that: ask first."""
        if self._hint_deadline is None:
            self._hint_deadline = now + HINT_PATIENCE
            self._asked = now
            return Verdict.PING
        return Verdict.FINE

    def on_stall(self, seconds: float, now: float) -> None:
        """This end's loop did not run for `seconds`."""
        self._heard = min(now, self._heard + seconds)
        if self._hint_deadline is not None:
            self._hint_deadline += seconds

    def check(self, now: float) -> Verdict:
        """Look at the clock."""
        if now - self._heard >= self._dead_after:
            return Verdict.DEAD
        if self._hint_deadline is not None and now >= self._hint_deadline:
            return Verdict.DEAD
        if now - self._heard >= self._heartbeat and now - self._asked >= self._heartbeat:
            self._asked = now
            return Verdict.PING
        return Verdict.FINE
