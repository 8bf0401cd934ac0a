"""A relay's heart: frames in, the same frames out, between two peers who both asked for it.

A frame goes on only if it comes from one of its session's two ends, and only to the
other one's link. Nothing is answered, changed, or made here; nothing is queued: what is too much
is dropped, and the QUIC connection inside slows down. No I/O but sending on the path.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from lattica.config import RelayConfig
from lattica.identity.keys import PeerId
from lattica.path.interface import Path, VirtualAddress
from lattica.path.relay import HEADER, Batch, Leg
from lattica.reach.fair import Shares
from lattica.reach.orphans import Orphans
from lattica.reach.register import Register
from lattica.reach.sessions import Party, RelayLoad, RelayStats, Session, Side

SHORT = "relay:short"
NO_SESSION = "relay:no_session"
WRONG_SOURCE = "relay:wrong_source"
STRANGER = "relay:stranger"
NO_LEG = "relay:no_leg"
OVER_RATE = "relay:over_rate"
ORPHANS_FULL = "relay:orphans_full"
SMOOTHING = 2.0  # seconds over which the rate that is told is averaged


class Forwarder:
    """The relay service of one peer, without its RPC face.

    `counters` take the frames that are dropped, by reason. Everything is called on
    the event loop's thread.
    """

    def __init__(
        self,
        path: Path,
        leg: Callable[[PeerId], Leg | None],
        config: RelayConfig,
        *,
        whose: Callable[[VirtualAddress], PeerId | None],
        counters: Counter[str],
        now: Callable[[], float],
    ) -> None:
        """Frames are sent on `path`.

        `leg` is this peer's open link to a peer, None if there is none now. `whose` is the
        peer of whose open link an address is, None if of none.
        """
        self._path = path
        self._config = config
        self._whose = whose
        self._counters = counters
        self._now = now
        self._shares = Shares(config, now())
        self._register = Register(leg, config, self._shares)
        self._sessions = self._register.sessions
        self._orphans = Orphans(config)
        self._dropped = Counter[str]()
        self._batch = 0
        self._frames_in = 0
        self._frames_out = 0
        self._bytes_out = 0
        self._checked = now()
        self._checked_bytes = 0
        self._rate = 0.0

    # ------------------------------------------------------------ reservations and sessions

    def reserve(self, peer: PeerId) -> float:
        """Take sessions for a peer from now on; for how many seconds, unless asked again.

        Raises:
            RelayBusyError: enough others have asked.
        """
        self._register.reserve(peer, self._now())
        return self._config.reservation

    def cancel(self, peer: PeerId) -> None:
        """Take no further sessions for a peer; those that are open go on. Idempotent."""
        self._register.cancel(peer)

    def open(self, session: bytes, source: PeerId, target: PeerId) -> None:
        """Forward between `source`, who asks, and `target`, who has a reservation.

        Raises:
            NoReservationError: it has none, or no link here.
            RelayBusyError: there are too many sessions.
            RelayError: the session's name cannot be used, or the two are one.
        """
        now = self._now()
        self._register.open(session, source, target, now)
        early = self._orphans.take(session, (source, target), now)
        if early:
            self._forward(early, now)

    def close(self, session: bytes, by: PeerId) -> None:
        """End a session, if `by` is one of its ends. Idempotent."""
        self._register.close(session, by, self._now())

    def joins(self, one: PeerId, other: PeerId) -> bool:
        """Whether a session between two peers is open."""
        return self._register.between(one, other) > 0

    def peer_down(self, peer: PeerId) -> None:
        """The link to a peer is lost. What it has here ends unless it is soon back."""
        self._register.peer_down(peer, self._now())

    def check(self) -> None:
        """Look at the clock, once a second."""
        now = self._now()
        self._register.check(now)
        self._drop(NO_SESSION, self._orphans.expire(now))
        self._shares.rest(now)
        self._measure(now)

    # ------------------------------------------------------------ frames

    def forward(self, frames: Batch) -> None:
        """Send frames on, each with where it came from. See `RelayPath.forward`."""
        self._frames_in += len(frames)
        self._forward(frames, self._now())

    @property
    def load(self) -> RelayLoad:
        """How busy this relay is, as of the last `check`."""
        return RelayLoad(
            sessions=len(self._sessions),
            reservations=self._register.reservations,
            rate=self._rate,
            share=min(1.0, self._rate / self._config.rate),
        )

    def statistics(self) -> RelayStats:
        """What was done since the beginning, and the sessions there are."""
        now = self._now()
        return RelayStats(
            frames_in=self._frames_in,
            frames_out=self._frames_out,
            bytes_out=self._bytes_out,
            waiting=len(self._orphans),
            dropped=dict(self._dropped),
            sessions=tuple(each.describe(now) for each in self._sessions.values()),
        )

    # ------------------------------------------------------------ inside

    def _forward(self, frames: Batch, now: float) -> None:
        self._shares.refill(now)
        self._batch += 1
        small = self._config.small_frame
        least = -self._config.small_reserve
        ready: dict[VirtualAddress, list[bytes]] = {}
        name, last = b"", None
        side: Side | None = None
        reason = SHORT
        for frame, source in frames:
            if frame[1:HEADER] != name or source != last:
                name, last = frame[1:HEADER], source
                side, to, reason = self._route(name, source, now)
                if to is not None:
                    out = ready.setdefault(to, [])
            size = len(frame)
            if size <= HEADER:
                self._drop(SHORT, 1)
            elif side is None:
                peer = self._whose(source) if reason == NO_SESSION else None
                self._unroutable(frame, source, reason, peer, now)
            elif reason:
                side.dropped += 1
                self._drop(reason, 1)
            else:
                flow = side.flow
                left = flow.level - size
                if left >= 0 or (size < small and left >= least):
                    flow.level = left
                    side.frames += 1
                    side.bytes += size
                    out.append(frame)
                else:
                    side.dropped += 1
                    self._drop(OVER_RATE, 1)
        for to, out in ready.items():
            if out:
                self._frames_out += len(out)
                self._bytes_out += sum(map(len, out))
                self._path.send(out, to)

    def _route(
        self, name: bytes, source: VirtualAddress, now: float
    ) -> tuple[Side | None, VirtualAddress | None, str]:
        """The direction that frames of a session from `source` belong to, and where they go.

        Or why they go nowhere.
        """
        session = self._sessions.get(name)
        if session is None:
            return None, None, NO_SESSION
        side = self._side(session, source)
        if side is None:
            return None, None, WRONG_SOURCE
        session.used = now
        leg = self._leg_of(side.receiver)
        if leg is None:
            return side, None, NO_LEG
        self._shares.wake(side.flow, now)
        return side, leg.current, ""

    def _side(self, session: Session, source: VirtualAddress) -> Side | None:
        sides = session.up, session.down
        legs = [(side, self._leg_of(side.sender)) for side in sides]
        # Where packets go now comes before what a peer only says of itself.
        for side, leg in legs:
            if leg is not None and leg.current == source:
                return side
        for side, leg in legs:
            if leg is not None and leg.has(source):
                return side
        return None

    def _leg_of(self, party: Party) -> Leg | None:
        """The link to a peer, asked for once a batch."""
        if party.batch != self._batch:
            party.batch = self._batch
            party.leg = self._register.direct(party.peer)
        return party.leg

    def _unroutable(
        self, frame: bytes, source: VirtualAddress, reason: str, peer: PeerId | None, now: float
    ) -> None:
        if reason != NO_SESSION:
            self._drop(reason, 1)
        elif peer is None:
            self._drop(STRANGER, 1)
        else:
            self._drop(ORPHANS_FULL, self._orphans.add(peer, frame, source, now))

    def _drop(self, reason: str, count: int) -> None:
        if count:
            self._dropped[reason] += count
            self._counters[reason] += count

    def _measure(self, now: float) -> None:
        passed = now - self._checked
        if passed <= 0.0:
            return
        lately = (self._bytes_out - self._checked_bytes) / passed
        self._rate += (lately - self._rate) * -math.expm1(-passed / SMOOTHING)
        self._checked, self._checked_bytes = now, self._bytes_out
