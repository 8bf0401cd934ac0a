"""Who may have which key, as one replica has granted it. No I/O: time is an argument."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from lattica.config import DhtConfig
from lattica.dht.keys import KEY_BYTES
from lattica.dht.messages import CLAIM, Claim, Lease
from lattica.dht.records import MICROSECONDS
from lattica.errors import BusyError, RecordError, SignatureError
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed


class Granted(NamedTuple):
    """A lease as its replica keeps it. Times are `Clock.elapsed`, in seconds."""

    envelope: Signed
    claim: Claim
    since: float
    until: float
    root: PeerId | None = None  # through whose grant the holder is a member

    @property
    def holder(self) -> PeerId:
        """Who has it."""
        return self.envelope.author


class LeaseBook:
    """Grants each key to one claimant at a time, first come first served."""

    def __init__(self, config: DhtConfig, counters: Counter[str]) -> None:
        self._config = config
        self._counters = counters
        self._granted: dict[bytes, Granted] = {}
        self._held: Counter[PeerId] = Counter()
        self._roots: Counter[PeerId | None] = Counter()
        self.grants = 0  # rises when a key gets another holder, not when a lease is renewed

    def __len__(self) -> int:
        return len(self._granted)

    def ask(
        self, envelope: Signed, claim: Claim, *, now: float, root: PeerId | None = None
    ) -> Lease | None:
        """The lease of a claimed key: the claimant's own now, or whoever's it is already.

        None: nobody has the key, after its holder gave it up.

        Raises:
            BusyError: the claimant, all of its `root`, or all together hold too many.
        """
        old = self.find(claim.key, now=now)
        is_own = old is not None and old.holder == envelope.author
        if old is not None and (not is_own or claim.sequence < old.claim.sequence):
            return _told(old, now)
        if claim.length == 0.0:
            if old is not None:
                self._drop(claim.key)
            return None
        if old is None:
            self._check_room(envelope.author, root, now)
        since = now if old is None else old.since
        granted = Granted(envelope, claim, since, now + claim.length, root)
        return _told(self._keep(granted), now)

    def find(self, key: bytes, *, now: float) -> Granted | None:
        """The lease of a key, if somebody has it."""
        granted = self._granted.get(key)
        if granted is not None and granted.until <= now:
            self._drop(key)
            return None
        return granted

    def told(self, key: bytes, *, now: float) -> Lease | None:
        """The same, as others are told."""
        granted = self.find(key, now=now)
        return None if granted is None else _told(granted, now)

    def restore(self, envelope: Signed, claim: Claim, *, now: float) -> None:
        """Take in what was granted before a restart.

        It counts anew from now: nobody can tell how long this peer was gone.
        """
        if len(self._granted) < self._config.max_leases:
            self._keep(Granted(envelope, claim, now, now + claim.length))

    def forget(self, envelope: Signed, key: bytes) -> None:
        """Undo a grant that could not be written down."""
        granted = self._granted.get(key)
        if granted is not None and granted.envelope == envelope:
            self._drop(key)

    def current(self, *, now: float) -> list[tuple[bytes, Signed]]:
        """The keys that somebody has now, and their claims."""
        self._expire(now)
        return [(key, granted.envelope) for key, granted in self._granted.items()]

    def _check_room(self, claimant: PeerId, root: PeerId | None, now: float) -> None:
        if self._is_full(claimant, root):
            self._expire(now)
        if self._is_full(claimant, root):
            self._counters["refused:leases"] += 1
            raise BusyError("too many names are held here", retry_after=self._config.lease)

    def _is_full(self, claimant: PeerId, root: PeerId | None) -> bool:
        config = self._config
        return (
            self._held[claimant] >= config.leases_per_peer
            or (root is not None and self._roots[root] >= config.leases_per_root)
            or len(self) >= config.max_leases
        )

    def _expire(self, now: float) -> None:
        for key in [key for key, granted in self._granted.items() if granted.until <= now]:
            self._drop(key)

    def _keep(self, granted: Granted) -> Granted:
        key = granted.claim.key
        if key in self._granted:
            self._drop(key)
        else:
            self.grants += 1
        self._granted[key] = granted
        self._held[granted.holder] += 1
        self._roots[granted.root] += 1
        return granted

    def _drop(self, key: bytes) -> None:
        granted = self._granted.pop(key)
        self._held[granted.holder] -= 1
        self._roots[granted.root] -= 1
        if not self._held[granted.holder]:
            del self._held[granted.holder]
        if not self._roots[granted.root]:
            del self._roots[granted.root]


def open_claim(envelope: Signed, *, time: float, config: DhtConfig) -> Claim:
    """A claim that is signed, well-formed and made just now.

    `time` is in seconds since the epoch.

    Raises:
        RecordError: it is not.
    """
    claim = read_claim(envelope, config)
    made = claim.sequence / MICROSECONDS
    if abs(time - made) > config.max_skew:
        way = "backdated" if made < time else "ahead of time"
        raise RecordError(
            f"the claim is {way} by {abs(time - made):.0f} s, at most {config.max_skew:.0f} are "
            "allowed; check the claimant's clock"
        )
    return claim


def read_claim(envelope: Signed, config: DhtConfig) -> Claim:
    """A claim that is signed and well-formed, whenever it was made.

    Raises:
        RecordError: it is not.
    """
    try:
        claim = envelope.open(CLAIM, Claim)
    except SignatureError as error:
        raise RecordError(f"the claim is forged: {error}") from None
    if len(claim.key) != KEY_BYTES:
        raise RecordError(f"a key is {KEY_BYTES} bytes, not {len(claim.key)}")
    if not (math.isfinite(claim.length) and 0.0 <= claim.length <= config.max_lease):
        raise RecordError(f"a lease is at most {config.max_lease:.0f} s, not {claim.length}")
    return claim


def _told(granted: Granted, now: float) -> Lease:
    return Lease(granted.envelope, now - granted.since, granted.until - now)
