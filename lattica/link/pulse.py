"""One link's pulse: its liveness, the beats that feed it, and whether it is suspect. No I/O."""

from __future__ import annotations

from collections.abc import Callable

from lattica.config import LinkConfig
from lattica.link.beat import Beats, Kind
from lattica.link.liveness import Liveness, Verdict


class Pulse:
    """Times in seconds of the event loop's clock."""

    __slots__ = ("_beats", "_changed", "_is_dialer", "_is_suspect", "liveness")

    def __init__(
        self,
        config: LinkConfig,
        now: float,
        *,
        is_dialer: bool,
        changed: Callable[[str | None], None],
    ) -> None:
        """`changed(reason)` is called when the other end becomes suspect, with None when it
        is heard again."""
        self.liveness = Liveness(config, now, is_dialer=is_dialer)
        self._is_dialer = is_dialer
        self._beats: Beats | None = None
        self._changed = changed
        self._is_suspect = False

    @property
    def is_suspect(self) -> bool:
        """Whether a sign of life is overdue."""
        return self._is_suspect

    def begin(self, binding: bytes) -> bytes:
        """The session has its secrets: beats can be made. The id under which they arrive."""
        self._beats = Beats(binding, is_dialer=self._is_dialer)
        return self._beats.id

    def on_heard(self, now: float) -> None:
        """An authentic QUIC packet arrived."""
        self.liveness.on_heard(now)
        if self._is_suspect:
            self.look(now)

    def on_beat(self, datagram: bytes, now: float) -> bytes | None:
        """A datagram of a beat's size arrived; the answer to it, if it wants one."""
        kind = None if self._beats is None else self._beats.take(datagram)
        if kind is None or self._beats is None:
            return None
        self.liveness.on_beat(now)
        if self._is_suspect:
            self.look(now)
        return self._beats.make(Kind.ANSWER) if kind is Kind.ASK else None

    def ask(self, rtt: float) -> bytes | None:
        """The beat for a verdict that calls for one."""
        self.liveness.expect(rtt)
        return None if self._beats is None else self._beats.make(Kind.ASK)

    def quiet_until(self, now: float) -> float | None:
        """Until when nothing is to be done; None: `check` it."""
        return None if self._is_suspect else self.liveness.quiet_until(now)

    def check(self, now: float) -> Verdict:
        """Look at the clock."""
        verdict = self.liveness.check(now)
        if verdict is not Verdict.BEAT:
            self.look(now)
        return verdict

    def look(self, now: float) -> None:
        """Tell of a change between alive and suspect."""
        is_suspect = self.liveness.is_suspect(now)
        if is_suspect is self._is_suspect:
            return
        self._is_suspect = is_suspect
        if not is_suspect:
            self._changed(None)
        elif self.liveness.is_hinted:
            self._changed("the network says that nobody listens there")
        else:
            self._changed(f"nothing was heard for {now - self.liveness.heard:.1f} s")
