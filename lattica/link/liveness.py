"""When to ask whether the other end is there, and when to stop believing it. No I/O.

A silent link is asked with a beat, which is cheap; without an answer it is pinged through
QUIC, again and again, which survives loss. The acceptor asks a little sooner, so that
one exchange serves both ends, and an end with many links asks them in one go.

A peer on another machine costs the network something, and its path may be cut for a while
without its being gone. So where nobody waits for it, it is asked rarely; as soon as something is
in flight, as often as any other. It becomes suspect as soon as any other, but is given up later.

Silence counts only while this end was able to listen: a loop that was busy elsewhere
has heard nothing either, so its lateness is added to the deadline.
"""

from __future__ import annotations

from enum import Enum

from lattica.config import LinkConfig

HINT_PATIENCE = 0.25  # seconds to answer after the network said that nobody is there,
REPEATED_HINT_PATIENCE = 0.15  # and after it said so again to the question that followed
WAKE_PATIENCE = 3.0  # seconds to answer after this machine slept: its network comes up as well
DIALER_PATIENCE = 1.25  # heartbeats that a dialer waits for the acceptor to ask
RETRY = 0.2  # heartbeats between unanswered pings, but at least
ROUND_TRIPS = 1.5  # so many of them
REFRESH = 20.0  # seconds without a QUIC packet: a ping, so that QUIC's idle timer never ends it


class Verdict(Enum):
    """What a look at the clock calls for."""

    FINE = "fine"
    BEAT = "beat"
    WAKE = "wake"  # a beat, and a ping for QUIC's own sake
    PING = "ping"  # there was no answer
    DEAD = "dead"


class Liveness:
    """One link's pulse. Times in seconds of one monotonic clock."""

    __slots__ = (
        "_asked",
        "_brisk",
        "_config",
        "_dead_after",
        "_heard",
        "_heard_quic",
        "_hint_deadline",
        "_is_brisk",
        "_is_far",
        "_patience",
        "_refresh",
        "_rest_limit",
        "_retry",
        "_silent_since",
        "_suspect_after",
        "_usual",
    )

    def __init__(self, config: LinkConfig, now: float, *, is_dialer: bool = False) -> None:
        self._config = config
        self._usual = self._patience = config.heartbeat * (DIALER_PATIENCE if is_dialer else 1.0)
        self._brisk = min(config.brisk, self._patience)
        self._is_brisk = False
        self._is_far = False
        self._rest_limit = float("inf")
        self._refresh = REFRESH * (1.0 if is_dialer else DIALER_PATIENCE)
        self._retry = config.heartbeat * RETRY
        self._dead_after = config.dead_after
        # Two heartbeats and a bit, or half the way from the first to the end if that is sooner.
        self._suspect_after = min(
            2.5 * config.heartbeat, (config.heartbeat + config.dead_after) / 2
        )
        self._heard = now
        self._heard_quic = now
        self._silent_since = now  # it counts from then on; not before a far one was asked
        self._asked = now
        self._hint_deadline: float | None = None

    @property
    def heard(self) -> float:
        """When the other end was last heard of."""
        return self._heard

    @property
    def is_hinted(self) -> bool:
        """Whether the network has said that nobody is there, and nothing was heard since."""
        return self._hint_deadline is not None

    def is_suspect(self, now: float) -> bool:
        """Whether a sign of life is overdue, or the network has said that nobody is there."""
        return self._hint_deadline is not None or self._silence(now) >= self._suspicious

    def on_heard(self, now: float) -> None:
        """An authentic QUIC packet arrived."""
        self._heard = self._heard_quic = self._silent_since = now
        self._hint_deadline = None

    def on_beat(self, now: float) -> None:
        """An authentic beat arrived."""
        self._heard = self._silent_since = now
        self._hint_deadline = None

    def on_hint(self, now: float) -> Verdict:
        """The network says that nobody listens there. Anybody can forge that: ask first."""
        if self._hint_deadline is None:
            self._hint_deadline = now + HINT_PATIENCE
            self._asked = now
            return Verdict.PING
        again = now + REPEATED_HINT_PATIENCE
        self._hint_deadline = min(self._hint_deadline, again)
        return Verdict.FINE

    def set_far(self, *, may_rest: bool) -> None:
        """The other end is on another machine.

        `may_rest`: `set_brisk` will tell whenever somebody waits for it.
        """
        self._is_far = True
        self._dead_after = max(self._config.far_dead_after, self._config.dead_after)
        self._brisk = self._usual
        if may_rest:
            rest = self._usual / self._config.heartbeat * self._config.far_heartbeat
            self._patience = max(self._usual, min(rest, self._rest_limit))

    def rest_at_most(self, seconds: float) -> None:
        """Ask a far link that rests at least so often: a router on the way forgets."""
        self._rest_limit = seconds
        if self._is_far:
            self._patience = min(self._patience, max(self._usual, seconds))

    def set_brisk(self, is_brisk: bool) -> None:
        """Whether to ask more often, since somebody waits.

        The kernel tells at once when a process here is gone, but only those who send to it.
        """
        self._is_brisk = is_brisk

    def on_stall(self, seconds: float, now: float) -> None:
        """This end's loop did not run for `seconds`."""
        self._heard = min(now, self._heard + seconds)
        self._heard_quic = min(now, self._heard_quic + seconds)
        self._silent_since = min(now, self._silent_since + seconds)
        if self._hint_deadline is not None:
            self._hint_deadline += seconds

    def on_wake(self, slept: float, now: float) -> None:
        """This machine was asleep, or its process stopped, for `slept` seconds.

        Where the other end has had reason to give the link up, it must answer soon: what it
        would answer with is gone, and whoever waits for it needs another link.
        """
        if slept >= self._dead_after:
            self._hint_deadline = now + WAKE_PATIENCE
            self._asked = now

    def check(self, now: float) -> Verdict:
        """Look at the clock."""
        hint, silence = self._hint_deadline, self._silence(now)
        if silence >= self._dead_after or (hint is not None and now >= hint):
            return Verdict.DEAD
        if self._asked > self._heard:
            if now < self._asked + self._pause(silence):
                return Verdict.FINE
        elif now - self._heard < (self._brisk if self._is_brisk else self._patience):
            return Verdict.FINE
        elif self._is_far:
            self._silent_since = max(self._heard, now - self._usual)
        is_repeated, self._asked = self._asked > self._heard, now
        if is_repeated:
            return Verdict.PING
        return Verdict.WAKE if now - self._heard_quic >= self._refresh else Verdict.BEAT

    def quiet_until(self, now: float) -> float | None:
        """Until when nothing is to be done, on a link whose last question was answered."""
        if self._asked <= self._heard and self._hint_deadline is None:
            ask_at = self._heard + (self._brisk if self._is_brisk else self._patience)
            if now < ask_at:
                return ask_at
        return None

    def expect(self, rtt: float) -> None:
        """A question has gone out; `rtt` is how long an answer takes, in seconds, if known."""
        self._retry = max(self._config.heartbeat * RETRY, ROUND_TRIPS * rtt)

    def due(self, now: float) -> float:
        """When `check` or `is_suspect` may say something new, if nothing is heard."""
        heard, hint = self._heard, self._hint_deadline
        if self._asked <= heard:
            due = heard + (
                self._brisk if self._is_brisk else self._patience
            )  # the first thing to happen, but for a hint
        else:
            since = self._silent_since
            due = min(self._asked + self._pause(now - since), since + self._dead_after)
            suspect_at = since + self._suspicious
            if now < suspect_at < due:
                due = suspect_at
        return due if hint is None else min(due, hint)

    # ------------------------------------------------------------------ inside

    @property
    def _suspicious(self) -> float:
        """Seconds of silence: time enough for an answer, however far the other end is."""
        return max(self._suspect_after, self._usual + self._retry)

    def _silence(self, now: float) -> float:
        """Seconds for which the other end should have been heard of."""
        if self._is_far and self._asked <= self._heard:
            return 0.0
        return now - self._silent_since

    def _pause(self, silence: float) -> float:
        """Seconds between questions: a path that is cut is not flooded with them."""
        if silence < self._config.dead_after:
            return self._retry
        return max(self._retry, self._config.heartbeat)
