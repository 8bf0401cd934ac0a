"""One link's clocks: how long it may take to open, how long it is granted, whether it lives.

No I/O: what a look at them calls for is done by the link.
"""

from __future__ import annotations

from typing import Protocol

from lattica.clock import Clock
from lattica.config import LinkConfig
from lattica.errors import LinkError, LinkLostError, LinkRefusedError
from lattica.link.interface import Drainable, LinkHandler
from lattica.link.liveness import Verdict
from lattica.link.pulse import Pulse
from lattica.link.refusals import CloseCode

PATIENCE_CHECK = 0.1  # seconds between looks at a link that is not open yet


class Watched(Protocol):
    """What a watch needs of its link."""

    @property
    def rtt(self) -> float:
        """Smoothed round-trip time in seconds; 0.0 before the first sample."""
        ...

    def look_at(self, at: float) -> None:
        """Have `Watch.check` called at that time, sooner than it had said."""
        ...

    def send_beat(self, datagram: bytes) -> None:
        """Send a datagram beside QUIC."""
        ...

    def probe(self) -> None:
        """Ask the other end for a sign of life, through QUIC."""
        ...

    def wake(self) -> None:
        """Have QUIC exchange packets, so that its idle timer does not end the connection."""
        ...

    def suspicion(self, reason: str | None) -> None:
        """The other end has become suspect; with None, it is heard again."""
        ...

    def refuse(self, error: LinkError) -> None:
        """Close with a typed reason."""
        ...

    def end(self, error: LinkError, code: CloseCode, reason: str) -> None:
        """Close."""
        ...


class Watch:
    """Times in seconds of the event loop's clock, but for the grant's.

    Attributes:
        pulse: what is heard of the other end goes there.
        may_get_busy: `look_busy` is to be called when something was written.
    """

    __slots__ = (
        "_clock",
        "_config",
        "_expires",
        "_is_brisk",
        "_is_dialer",
        "_is_keyed",
        "_is_open",
        "_link",
        "_refusals",
        "_since",
        "_work",
        "may_get_busy",
        "pulse",
    )

    def __init__(
        self, link: Watched, config: LinkConfig, clock: Clock, now: float, *, is_dialer: bool
    ) -> None:
        """`clock` is the one that grants go by."""
        self._link = link
        self._config = config
        self._clock = clock
        self._is_dialer = is_dialer
        self._since = now
        self._refusals = 0
        self._is_keyed = False
        self._is_open = False
        self._expires = float("inf")
        self._work: Drainable | None = None  # the handler, if it can tell whether it is busy
        self._is_brisk = False
        self.may_get_busy = False
        self.pulse = Pulse(config, now, is_dialer=is_dialer, changed=link.suspicion)

    def keyed(self, binding: bytes) -> bytes:
        """TLS is done. The id under which beats arrive."""
        self._is_keyed = True
        return self.pulse.begin(binding)

    def opened(self, now: float, *, expires: float) -> float:
        """Both ends have accepted each other. When `check` is to be called.

        `expires` is when the other end's grant does, in seconds since the Unix epoch.
        """
        self._is_open = True
        self._expires = expires
        return self.pulse.liveness.due(now)

    def handled(self, handler: LinkHandler, *, is_local: bool) -> None:
        """An open link has its handler. `is_local`: the other end is on this machine."""
        self._work = handler if isinstance(handler, Drainable) else None
        self.may_get_busy = self._work is not None
        if not is_local:
            self.pulse.liveness.set_far(may_rest=self._work is not None)

    def check(self, now: float) -> float:
        """Look at the clocks; when to look again. Not called any more once the link is closed."""
        if not self._is_open:
            limit = self._config.handshake_timeout
            if not self._is_dialer and now - self._since >= limit:  # a dialer's is its dial's
                self._link.refuse(LinkRefusedError(f"no valid hello within {limit:g} s"))
            return now + PATIENCE_CHECK
        if self._expires <= self._clock.time():
            self._link.refuse(LinkRefusedError("the grant expired; ask for a new one"))
            return now
        if self._is_brisk:
            self.look_busy(now)
        if (due := self.pulse.quiet_until(now)) is not None:
            return due  # by far the most frequent outcome
        return self._check_life(now)

    def look_busy(self, now: float) -> None:
        """Listen more closely to a peer while somebody waits for it."""
        is_brisk = self._work is not None and not self._work.is_idle
        if is_brisk is not self._is_brisk:
            self._is_brisk = is_brisk
            self.may_get_busy = not is_brisk
            liveness = self.pulse.liveness
            liveness.set_brisk(is_brisk)
            if is_brisk:
                self._link.look_at(liveness.due(now))

    def on_refused(self, now: float) -> None:
        """The network says that nobody listens there (a hint, not a fact)."""
        if self._is_open:
            if self.pulse.liveness.on_hint(now) is Verdict.PING:
                self._link.probe()
                self.pulse.look(now)
                self._link.look_at(self.pulse.liveness.due(now))
        elif self._is_dialer and not self._is_keyed:
            self._refusals += 1
            if self._refusals > 1:  # the first may be of a peer that is just starting
                self._link.end(LinkLostError("nobody listens there"), CloseCode.LOST, "")

    def on_wake(self, slept: float, now: float) -> None:
        """This machine was asleep for `slept` seconds."""
        self.pulse.liveness.on_wake(slept, now)
        self.pulse.look(now)

    def on_stall(self, seconds: float, now: float) -> None:
        """This end's loop did not run for `seconds`: nobody is to blame for them."""
        self._since += seconds
        self.pulse.liveness.on_stall(seconds, now)

    def _check_life(self, now: float) -> float:
        pulse, link = self.pulse, self._link
        verdict = pulse.check(now)
        if verdict is Verdict.BEAT or verdict is Verdict.WAKE or verdict is Verdict.PING:
            # A ping takes a beat along: an engine whose window is full keeps its ping to itself,
            # and after a blackout nothing else would tell in time that both ends are there.
            if (beat := pulse.ask(link.rtt)) is not None:
                link.send_beat(beat)
            if verdict is Verdict.PING:
                link.probe()
            elif verdict is Verdict.WAKE:
                link.wake()
        elif verdict is Verdict.DEAD:
            text = f"nothing was heard for {now - pulse.liveness.heard:.1f} s"
            link.end(LinkLostError(text), CloseCode.LOST, text)
        return pulse.liveness.due(now)
