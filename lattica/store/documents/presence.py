"""What the peers that have a document open say of themselves, sans I/O: signed, for a while.

Nothing of it is part of the document or ever on disk. Whoever passes it on cannot change it;
what was said long ago, or was taken back, cannot be said again by another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lattica.config import StoreConfig
from lattica.errors import DocumentError, GrantError, SignatureError
from lattica.identity import grants
from lattica.identity.grants import Membership
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed
from lattica.store.chains.chain import standing
from lattica.store.chains.messages import PRESENCE, Presence
from lattica.store.chains.refusals import RefusedError
from lattica.store.crdt.values import decode_value, encode_value

MAX_PEERS = 512  # of one document
SKEW = 60.0  # seconds by which the clocks of two peers may differ
RATE, BURST = 20.0, 40.0  # what is taken of one peer: a second, and at once

_OVERHEAD = 8192  # bytes beside the state, most of them grants


class Seen(NamedTuple):
    """The latest of one peer."""

    envelope: Signed | None  # None: forgotten, and not to be passed on
    sequence: int
    state: bytes  # empty: it is gone
    until: float  # by the loop's time
    room: float  # how many more may come at `at`
    at: float


class PresenceBook:
    """All of one document. `now` is the loop's time, `wall` seconds since the Unix epoch."""

    def __init__(
        self,
        document: str,
        identity: Identity,
        membership: Membership,
        config: StoreConfig,
    ) -> None:
        self._document = document
        self._identity = identity
        self._membership = membership
        self._config = config
        self._own = b""
        self._said = 0  # the sequence of what was last said of it
        self._own_envelope: Signed | None = None
        self._seen: dict[PeerId, Seen] = {}

    @property
    def own(self) -> Any:
        """What this peer says of itself; None if nothing."""
        return decode_value(self._own) if self._own else None

    @property
    def is_present(self) -> bool:
        """Whether this peer has anything to say of itself."""
        return bool(self._own)

    def set(self, value: Any) -> bool:
        """Have something else to say; whether it is something else.

        Raises:
            DocumentError: not a plain value, or too large.
        """
        state = b"" if value is None else encode_value(value)
        if len(state) > self._config.max_presence:
            raise DocumentError(
                f"{len(state)} bytes to say of oneself, at most {self._config.max_presence} are "
                "allowed; put what is larger into the document"
            )
        is_new = state != self._own
        self._own = state
        return is_new

    def others(self) -> Mapping[PeerId, Any]:
        """What the others say of themselves."""
        return {peer: decode_value(seen.state) for peer, seen in self._seen.items() if seen.state}

    def announce(self, wall: float) -> None:
        """Say it, again or for the first time."""
        self._said = max(self._said + 1, int(wall * 1e6))
        presence = Presence(
            self._membership.mesh, self._document, self._said, self._own, self._membership
        )
        self._own_envelope = Signed.seal(self._identity, PRESENCE, presence)

    def envelopes(self, peers: Iterable[PeerId]) -> list[Signed]:
        """What these say of themselves, for others."""
        found = []
        for peer in peers:
            if peer == self._identity.peer_id:
                if self._own_envelope is not None:
                    found.append(self._own_envelope)
            elif (seen := self._seen.get(peer)) is not None and seen.envelope is not None:
                found.append(seen.envelope)
        return found

    def known(self) -> list[PeerId]:
        """Those of whom there is something to pass on."""
        found = [peer for peer, seen in self._seen.items() if seen.state]
        return [*found, self._identity.peer_id] if self._own else found

    def receive(self, envelope: Signed, *, wall: float, now: float) -> bool:
        """Take in what a peer says, whoever brings it; whether it is to be passed on.

        Raises:
            RefusedError: it is not what it should be.
        """
        peer = envelope.author
        if peer == self._identity.peer_id:
            return False
        before = self._seen.get(peer)
        if before is not None and envelope == before.envelope:
            return False
        presence = self._open(envelope, wall)
        room = BURST
        if before is not None:
            if presence.sequence <= before.sequence:
                return False
            # Only now, so that nobody else uses up what the peer may say.
            room = min(BURST, before.room + (now - before.at) * RATE) - 1
            if room < 0:
                raise RefusedError("busy", f"{peer.short} speaks too often")
        elif not presence.state:
            return False
        elif len(self._seen) >= MAX_PEERS:
            raise RefusedError("full", f"{MAX_PEERS} peers are present already")
        until = now + self._config.presence_timeout
        self._seen[peer] = Seen(envelope, presence.sequence, presence.state, until, room, now)
        return True

    def forget(self, peer: PeerId) -> bool:
        """The link with a peer is gone: so is what it said, until it says more.

        Its number is kept, so that nobody brings the same back.
        """
        seen = self._seen.get(peer)
        if seen is None or not seen.state:
            return False
        self._seen[peer] = seen._replace(envelope=None, state=b"")
        return True

    def expire(self, now: float) -> list[PeerId]:
        """Forget those who have said nothing for long."""
        gone = []
        for peer, seen in list(self._seen.items()):
            if seen.until <= now and seen.state:
                gone.append(peer)
                self._seen[peer] = seen._replace(envelope=None, state=b"")
            # Until nobody would take the same in any more.
            if seen.until + self._config.presence_timeout + 2 * SKEW <= now:
                del self._seen[peer]
        return gone

    def _open(self, envelope: Signed, wall: float) -> Presence:
        if len(envelope.payload) > self._config.max_presence + _OVERHEAD:
            raise RefusedError("oversized", f"{len(envelope.payload)} bytes about presence")
        try:
            presence = envelope.open(PRESENCE, Presence)
        except SignatureError as error:
            raise RefusedError("forged", str(error)) from None
        if presence.mesh != self._membership.mesh or presence.document != self._document:
            raise RefusedError("foreign", f"presence in {presence.document!r}")
        if abs(presence.sequence / 1e6 - wall) > self._config.presence_timeout + SKEW:
            raise RefusedError("stale", f"{envelope.author.short} said it long ago, or will")
        membership = presence.membership
        try:
            ground = standing(membership, envelope.author)
        except GrantError as error:
            raise RefusedError("unauthorised", str(error)) from None
        if (
            membership.mesh != presence.mesh
            or not grants.allows(ground.scopes, grants.CALL)
            or ground.expires <= wall
        ):
            raise RefusedError("unauthorised", f"{envelope.author.short} may not read this")
        if presence.state:
            if len(presence.state) > self._config.max_presence:
                raise RefusedError("oversized", f"a state of {len(presence.state)} bytes")
            try:
                decode_value(presence.state)
            except DocumentError as error:
                raise RefusedError("malformed", str(error)) from None
        return presence
