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
from lattica.errors import NoReservationError, RelayBusyError, RelayError
from lattica.identity.keys import PeerId
from lattica.path.interface import Path, VirtualAddress
from lattica.path.relay import HEADER, SCHEME, SESSION, Batch, Leg
from lattica.reach.fair import Shares
from lattica.reach.orphans import Orphans
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
        self._leg = leg
        self._config = config
        self._whose = whose
        self._counters = counters
        self._now = now
        self._parties: dict[PeerId, Party] = {}
        self._sessions: dict[bytes, Session] = {}
        self._reservations = 0
        self._shares = Shares(config, now())
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
        party = self._parties.get(peer)
        if party is None or party.reserved_until is None:
            if self._reservations >= self._config.max_reservations:
                raise self._busy(f"it takes sessions for {self._reservations} peers already")
            party = self._party(peer)
            self._reservations += 1
        party.reserved_until = self._now() + self._config.reservation
        return self._config.reservation

    def cancel(self, peer: PeerId) -> None:
        """Take no further sessions for a peer; those that are open go on. Idempotent."""
        party = self._parties.get(peer)
        if party is not None and party.reserved_until is not None:
            party.reserved_until = None
            self._reservations -= 1
            self._tidy(party)

    def open(self, session: bytes, source: PeerId, target: PeerId) -> None:
        """Forward between `source`, who asks, and `target`, who has a reservation.

        Raises:
            NoReservationError: it has none, or no link here.
            RelayBusyError: there are too many sessions.
            RelayError: the session's name cannot be used, or the two are one.
        """
        now = self._now()
        if len(session) != SESSION:
            raise RelayError(f"a session's name is {SESSION} bytes, not {len(session)}")
        if session in self._sessions:
            raise RelayError("a relay session of that name is open; choose another name")
        if source == target:
            raise RelayError("a relay does not lead a peer to itself; choose another target")
        self._admit(source, target, now)
        ends = self._party(source), self._party(target)
        group = ends[0].group
        up = Side(*ends, self._shares.join(group, (target, True)))
        down = Side(ends[1], ends[0], self._shares.join(group, (target, False)))
        made = self._sessions[session] = Session(session, up, down, now)
        for party in ends:
            party.sessions[session] = made
        early = self._orphans.take(session, (source, target), now)
        if early:
            self._forward(early, now)

    def close(self, session: bytes, by: PeerId) -> None:
        """End a session, if `by` is one of its ends. Idempotent."""
        found = self._sessions.get(session)
        if found is not None and any(by == party.peer for party in found.ends):
            self._end(found)

    def joins(self, one: PeerId, other: PeerId) -> bool:
        """Whether a session between two peers is open."""
        party = self._parties.get(one)
        return party is not None and any(
            other == end.peer for session in party.sessions.values() for end in session.ends
        )

    def peer_down(self, peer: PeerId) -> None:
        """The link to a peer is lost. What it has here ends unless it is soon back."""
        party = self._parties.get(peer)
        if party is not None and party.down_at is None:
            party.down_at = self._now()

    def check(self) -> None:
        """Look at the clock, once a second."""
        now = self._now()
        for party in tuple(self._parties.values()):
            if self._leg(party.peer) is not None:
                party.down_at = None
            elif party.down_at is None:
                party.down_at = now
            is_lost = party.down_at is not None and now - party.down_at > self._config.grace
            if is_lost:
                for session in tuple(party.sessions.values()):
                    self._end(session)
            if is_lost or (party.reserved_until is not None and now >= party.reserved_until):
                self.cancel(party.peer)
        for session in tuple(self._sessions.values()):
            if now - session.used > self._config.idle:
                self._end(session)
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
            reservations=self._reservations,
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
        known: dict[VirtualAddress, PeerId | None] = {}  # whose they are: costly for strangers'
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
                if reason == NO_SESSION and source not in known:
                    known[source] = self._whose(source)
                self._unroutable(frame, source, reason, known.get(source), now)
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
            party.leg = self._direct(party.peer)
        return party.leg

    def _direct(self, peer: PeerId) -> Leg | None:
        """A relay's link to a peer that goes over another relay carries no sessions."""
        leg = self._leg(peer)
        return None if leg is None or leg.current.scheme == SCHEME else leg

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

    def _admit(self, source: PeerId, target: PeerId, now: float) -> None:
        """Raise what `open` raises for lack of a reservation, a link or room."""
        config = self._config
        asked = self._parties.get(target)
        if asked is None or asked.reserved_until is None or now >= asked.reserved_until:
            raise NoReservationError(
                f"{target.short} has not asked this relay to take sessions; try its other relays"
            )
        if self._direct(target) is None:
            raise NoReservationError(
                f"{target.short} has no link of its own to this relay; try its other relays"
            )
        if self._direct(source) is None:
            raise RelayError(
                f"{source.short} has no link of its own to this relay; link to it, then ask again"
            )
        if len(self._sessions) >= config.max_sessions:
            raise self._busy(f"{len(self._sessions)} sessions are open")
        for peer in (source, target):
            party = self._parties.get(peer)
            if party is not None and len(party.sessions) >= config.max_sessions_per_peer:
                raise self._busy(f"{len(party.sessions)} sessions of {peer.short} are open")
        between = sum(
            any(party.peer == source for party in session.ends)
            for session in asked.sessions.values()
        )
        if between >= config.max_sessions_per_pair:
            raise self._busy(f"{between} sessions are open between the two; close some")

    def _busy(self, why: str) -> RelayBusyError:
        after = self._config.retry_after
        return RelayBusyError(
            f"the relay is busy: {why}; try another relay, or this one in {after:g} s",
            retry_after=after,
        )

    def _party(self, peer: PeerId) -> Party:
        party = self._parties.get(peer)
        if party is None:
            party = self._parties[peer] = Party(peer)
        return party

    def _end(self, session: Session) -> None:
        del self._sessions[session.name]
        for side in (session.up, session.down):
            self._shares.leave(side.flow)
        for party in session.ends:
            del party.sessions[session.name]
            self._tidy(party)

    def _tidy(self, party: Party) -> None:
        if party.reserved_until is None and not party.sessions:
            self._parties.pop(party.peer, None)

    def _measure(self, now: float) -> None:
        passed = now - self._checked
        if passed <= 0.0:
            return
        lately = (self._bytes_out - self._checked_bytes) / passed
        self._rate += (lately - self._rate) * -math.expm1(-passed / SMOOTHING)
        self._checked, self._checked_bytes = now, self._bytes_out
