"""Who may use a relay: reservations, sessions, and their limits. No I/O."""

from __future__ import annotations

from collections.abc import Callable

from lattica.config import RelayConfig
from lattica.errors import NoReservationError, RelayBusyError, RelayError
from lattica.identity.keys import PeerId
from lattica.path.relay import SCHEME, SESSION, Leg
from lattica.reach.allowances import Allowances
from lattica.reach.fair import Shares
from lattica.reach.sessions import Party, Session, Side


class Register:
    """What `lattica.reach.forwarding.Forwarder` forwards. Times in seconds.

    Attributes:
        sessions: those that are open, by name.
        reservations: how many peers have one.
    """

    def __init__(
        self, leg: Callable[[PeerId], Leg | None], config: RelayConfig, shares: Shares
    ) -> None:
        """`leg` is this peer's open link to a peer; the rate is shared by `shares`."""
        self._leg = leg
        self._config = config
        self._shares = shares
        self._allowances = Allowances(config)
        self._parties: dict[PeerId, Party] = {}
        self.sessions: dict[bytes, Session] = {}
        self.reservations = 0

    def __len__(self) -> int:
        """Peers with a reservation or a session."""
        return len(self._parties)

    def reserve(self, peer: PeerId, now: float) -> None:
        """See `Forwarder.reserve`."""
        party = self._parties.get(peer)
        if party is None or party.reserved_until is None:
            if self.reservations >= self._config.max_reservations:
                raise self._busy(f"it takes sessions for {self.reservations} peers already")
            party = self._party(peer)
            self.reservations += 1
        party.reserved_until = now + self._config.reservation

    def cancel(self, peer: PeerId) -> None:
        """See `Forwarder.cancel`."""
        party = self._parties.get(peer)
        if party is not None and party.reserved_until is not None:
            party.reserved_until = None
            self.reservations -= 1
            self._tidy(party)

    def open(self, session: bytes, source: PeerId, target: PeerId, now: float) -> None:
        """See `Forwarder.open`."""
        if len(session) != SESSION:
            raise RelayError(f"a session's name is {SESSION} bytes, not {len(session)}")
        if session in self.sessions:
            raise RelayError("a relay session of that name is open; choose another name")
        if source == target:
            raise RelayError("a relay does not lead a peer to itself; choose another target")
        self._admit(source, target, now)
        ends = self._party(source), self._party(target)
        group = ends[0].group
        up = Side(*ends, self._shares.join(group, (target, True)))
        down = Side(ends[1], ends[0], self._shares.join(group, (target, False)))
        made = self.sessions[session] = Session(session, up, down, now)
        for party in ends:
            party.sessions[session] = made

    def close(self, session: bytes, by: PeerId, now: float) -> None:
        """See `Forwarder.close`."""
        found = self.sessions.get(session)
        if found is not None and any(by == party.peer for party in found.ends):
            self._end(found, now)

    def between(self, one: PeerId, other: PeerId) -> int:
        """How many sessions are open between two peers."""
        party = self._parties.get(one)
        if party is None or one == other:
            return 0
        return sum(
            any(end.peer == other for end in session.ends) for session in party.sessions.values()
        )

    def peer_down(self, peer: PeerId, now: float) -> None:
        """See `Forwarder.peer_down`."""
        party = self._parties.get(peer)
        if party is not None and party.down_at is None:
            party.down_at = now

    def check(self, now: float) -> None:
        """End what is over."""
        for party in tuple(self._parties.values()):
            self._check_party(party, now)
        for session in tuple(self.sessions.values()):
            source = session.up.sender.peer
            self._allowances.spend(source, session.bill(), now)
            if now - session.used > self._config.idle or self._allowances.pause(source, now):
                self._end(session, now)

    def direct(self, peer: PeerId) -> Leg | None:
        """The link to a peer; one that goes over another relay carries no sessions."""
        leg = self._leg(peer)
        return None if leg is None or leg.current.scheme == SCHEME else leg

    # ------------------------------------------------------------ inside

    def _check_party(self, party: Party, now: float) -> None:
        if self._leg(party.peer) is not None:
            party.down_at = None
        elif party.down_at is None:
            party.down_at = now
        is_lost = party.down_at is not None and now - party.down_at > self._config.grace
        if is_lost:
            for session in tuple(party.sessions.values()):
                self._end(session, now)
        if is_lost or (party.reserved_until is not None and now >= party.reserved_until):
            self.cancel(party.peer)

    def _admit(self, source: PeerId, target: PeerId, now: float) -> None:
        """Raise what `open` raises for lack of a reservation, a link or room."""
        config = self._config
        asked = self._parties.get(target)
        if asked is None or asked.reserved_until is None or now >= asked.reserved_until:
            raise NoReservationError(
                f"{target.short} has not asked this relay to take sessions; try its other relays"
            )
        if self.direct(target) is None:
            raise NoReservationError(
                f"{target.short} has no link of its own to this relay; try its other relays"
            )
        if self.direct(source) is None:
            raise RelayError(
                f"{source.short} has no link of its own to this relay; link to it, then ask again"
            )
        pause = self._allowances.pause(source, now)
        if pause:
            raise self._busy(f"{source.short} has used up its bytes", pause)
        if len(self.sessions) >= config.max_sessions:
            raise self._busy(f"{len(self.sessions)} sessions are open")
        for peer in (source, target):
            party = self._parties.get(peer)
            if party is not None and len(party.sessions) >= config.max_sessions_per_peer:
                raise self._busy(f"{len(party.sessions)} sessions of {peer.short} are open")
        between = self.between(source, target)
        if between >= config.max_sessions_per_pair:
            raise self._busy(f"{between} sessions are open between the two; close some")

    def _busy(self, why: str, after: float = 0.0) -> RelayBusyError:
        after = max(after, self._config.retry_after)
        error = RelayBusyError(
            f"the relay is busy: {why}; try another relay, or this one in {after:.0f} s"
        )
        error.retry_after = after
        return error

    def _party(self, peer: PeerId) -> Party:
        party = self._parties.get(peer)
        if party is None:
            party = self._parties[peer] = Party(peer)
        return party

    def _end(self, session: Session, now: float) -> None:
        self._allowances.spend(session.up.sender.peer, session.bill(), now)
        del self.sessions[session.name]
        for side in (session.up, session.down):
            self._shares.leave(side.flow)
        for party in session.ends:
            del party.sessions[session.name]
            self._tidy(party)

    def _tidy(self, party: Party) -> None:
        if party.reserved_until is None and not party.sessions:
            self._parties.pop(party.peer, None)
