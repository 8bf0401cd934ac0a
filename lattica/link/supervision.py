"""What state each peer is in, and when a lost one may be dialled again. No I/O.

A peer is `down` until a dial begins, `connecting` until it ends, `up` while a link is
open, `suspect` while an open link is silent for longer than it should be. Between failed
dials lies a pause drawn from [0, base * 2^failures), at most `backoff_max`: with "full
jitter" peers that lost the same one do not come back to it all at once.
Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from enum import Enum

import msgspec

from lattica.config import LinkConfig
from lattica.errors import LinkError
from lattica.identity.keys import PeerId

MAX_PEERS = 8192  # remembered; the longest unused ones that are down are forgotten
MAX_DOUBLINGS = 16


class PeerState(Enum):
    """How this end stands with a peer."""

    DOWN = "down"
    CONNECTING = "connecting"
    UP = "up"
    SUSPECT = "suspect"  # its link is open and silent for too long, or was hinted to be dead


class PeerEvent(msgspec.Struct, frozen=True):
    """A peer has changed its state."""

    peer: PeerId
    state: PeerState
    before: PeerState
    reason: str
    at: float  # seconds of the event loop's clock
    error: LinkError | None = None  # why it is down


class _Standing(msgspec.Struct):
    """What is remembered of one peer."""

    state: PeerState = PeerState.DOWN
    failures: int = 0  # dials in a row, and links that did not last
    due: float = 0.0  # not dialled before
    up_since: float = 0.0
    error: LinkError | None = None
    keeps: int = 0  # how many want it linked


class Supervisor:
    """The standing of every peer. Inputs return the event to be told, if there is one."""

    def __init__(self, config: LinkConfig, *, chance: Callable[[], float]) -> None:
        """`chance` draws from [0, 1)."""
        self._config = config
        self._chance = chance
        self._peers: OrderedDict[PeerId, _Standing] = OrderedDict()
        self._kept: dict[PeerId, None] = {}

    def __len__(self) -> int:
        return len(self._peers)

    # -------------------------------------------------------------- questions

    def state(self, peer: PeerId) -> PeerState:
        """How this end stands with `peer`; strangers are down."""
        standing = self._peers.get(peer)
        return PeerState.DOWN if standing is None else standing.state

    def wait(self, peer: PeerId, now: float) -> float:
        """Seconds until `peer` may be dialled; 0.0 for now."""
        standing = self._peers.get(peer)
        return 0.0 if standing is None else max(0.0, standing.due - now)

    def failures(self, peer: PeerId) -> tuple[int, LinkError | None]:
        """How many attempts in a row have failed, and how the last one did."""
        standing = self._peers.get(peer)
        return (0, None) if standing is None else (standing.failures, standing.error)

    def due(self, now: float) -> list[PeerId]:
        """The kept peers that are to be dialled now."""
        return [
            peer
            for peer in self._kept
            if (standing := self._peers[peer]).state is PeerState.DOWN and standing.due <= now
        ]

    def next_due(self) -> float | None:
        """When `due` will next name somebody, if nothing else happens."""
        return min(
            (
                standing.due
                for peer in self._kept
                if (standing := self._peers[peer]).state is PeerState.DOWN
            ),
            default=None,
        )

    def is_kept(self, peer: PeerId) -> bool:
        """Whether somebody wants `peer` linked."""
        return peer in self._kept

    # ----------------------------------------------------------------- inputs

    def keep(self, peer: PeerId) -> None:
        """Somebody wants `peer` linked until `release`."""
        self._of(peer).keeps += 1
        self._kept[peer] = None

    def release(self, peer: PeerId) -> None:
        """The counterpart of `keep`."""
        standing = self._of(peer)
        standing.keeps = max(0, standing.keeps - 1)
        if not standing.keeps:
            self._kept.pop(peer, None)

    def reset(self, peer: PeerId) -> None:
        """There is news of `peer`: the next dial need not wait."""
        standing = self._peers.get(peer)
        if standing is not None:
            standing.failures = 0
            standing.due = 0.0

    def dialling(self, peer: PeerId, now: float) -> PeerEvent | None:
        """A dial begins."""
        return self._move(peer, PeerState.CONNECTING, "dialling", now)

    def failed(self, peer: PeerId, error: LinkError, now: float) -> PeerEvent | None:
        """A dial has failed."""
        standing = self._of(peer)
        self._back_off(standing, now)
        standing.error = error
        if standing.state is not PeerState.CONNECTING:
            return None
        return self._move(peer, PeerState.DOWN, str(error), now, error)

    def up(self, peer: PeerId, reason: str, now: float) -> PeerEvent | None:
        """A link is open. What it tells of the failures before shows when it ends."""
        standing = self._of(peer)
        standing.up_since = now
        standing.due = 0.0
        standing.error = None
        return self._move(peer, PeerState.UP, reason, now)

    def suspect(self, peer: PeerId, reason: str, now: float) -> PeerEvent | None:
        """The open link is silent, or the network says that nobody is there."""
        if self.state(peer) is not PeerState.UP:
            return None
        return self._move(peer, PeerState.SUSPECT, reason, now)

    def heard(self, peer: PeerId, now: float) -> PeerEvent | None:
        """A suspect has shown a sign of life."""
        if self.state(peer) is not PeerState.SUSPECT:
            return None
        return self._move(peer, PeerState.UP, "heard again", now)

    def lost(
        self, peer: PeerId, error: LinkError, now: float, *, is_ours: bool = False
    ) -> PeerEvent | None:
        """The link has ended; `is_ours`: because this end wanted it to."""
        standing = self._of(peer)
        if not is_ours and now - standing.up_since < self._config.stable_after:
            self._back_off(standing, now)  # a link that never lasts must not be made in a loop
        else:
            standing.failures = 0
            standing.due = now + self._pause(0) if standing.keeps else 0.0
        standing.error = error
        return self._move(peer, PeerState.DOWN, str(error), now, error)

    # ----------------------------------------------------------------- inside

    def _of(self, peer: PeerId) -> _Standing:
        standing = self._peers.get(peer)
        if standing is None:
            standing = self._peers[peer] = _Standing()
            if len(self._peers) > MAX_PEERS:
                self._forget_one(self._peers)
        else:
            self._peers.move_to_end(peer)
        return standing

    def _forget_one(self, peers: Iterable[PeerId]) -> None:
        for peer in peers:
            standing = self._peers[peer]
            if standing.state is PeerState.DOWN and not standing.keeps:
                del self._peers[peer]
                return

    def _move(
        self,
        peer: PeerId,
        state: PeerState,
        reason: str,
        now: float,
        error: LinkError | None = None,
    ) -> PeerEvent | None:
        standing = self._of(peer)
        before, standing.state = standing.state, state
        if before is state:
            return None
        return PeerEvent(peer, state, before, reason, now, error)

    def _back_off(self, standing: _Standing, now: float) -> None:
        standing.due = now + self._pause(standing.failures)
        standing.failures += 1

    def _pause(self, failures: int) -> float:
        config = self._config
        limit = config.backoff_base * 2 ** min(failures, MAX_DOUBLINGS)
        return float(self._chance() * min(limit, config.backoff_max))
