"""The records a peer keeps for others. No I/O: time is an argument."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lattica.config import DhtConfig
from lattica.dht.crowds import Crowds, Place, largest
from lattica.dht.records import Record, Verifier
from lattica.errors import RecordError
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed


class Kept(NamedTuple):
    """A stored envelope and the record it holds."""

    envelope: Signed
    record: Record
    sponsor: PeerId | None = None  # who handed it over, if not its author
    at: float = 0.0  # when it came, in seconds since the Unix epoch
    root: PeerId | None = None  # through whose grant the one who brought it is a member


class _Author:
    """What is counted of one peer: its records, those it handed over, and how fast they come."""

    __slots__ = ("at", "records", "sponsored", "tokens")

    def __init__(self, tokens: float, at: float) -> None:
        self.records = 0
        self.sponsored = 0
        self.tokens = tokens
        self.at = at


Slot = tuple[str, PeerId]  # kind and author: what may stand once under a key


class Storage:
    """Verified records by key, many authors each, within limits."""

    def __init__(
        self, verifier: Verifier, config: DhtConfig, counters: Counter[str] | None = None
    ) -> None:
        """Refusals are counted by reason in `counters`."""
        self._verifier = verifier
        self._config = config
        self._keys: dict[bytes, dict[Slot, Kept]] = {}
        self._authors: dict[PeerId, _Author] = {}
        self._count = 0
        self._bytes = 0
        self._sponsored_bytes = 0
        self._crowds = Crowds()
        self.counters: Counter[str] = Counter() if counters is None else counters
        self.changed: Callable[[bytes], None] | None = None  # with the key
        self.version = 0  # rises with every change

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes of payload kept."""
        return self._bytes

    def __iter__(self) -> Iterator[Kept]:
        return iter([kept for slots in self._keys.values() for kept in slots.values()])

    def store(
        self,
        envelope: Signed,
        *,
        now: float,
        own: bool = False,
        sponsor: PeerId | None = None,
        root: PeerId | None = None,
        restored: bool = False,
    ) -> Record:
        """Keep a record; the same one again is no error. `own` records know no limits.

        With a `sponsor`, who hands over what another has said, the haste is the sponsor's. What
        is `restored` was kept before: it has no haste, and all other limits. Where there is no
        more room, records of the `root` that has most of it give way to those of others.

        Raises:
            RecordError: forged, expired, oversized, mistyped, stale, replayed, or over a limit.
        """
        author = envelope.author
        if not own and not restored:
            self._spend(sponsor or author, now)
        try:
            record = self._verifier.open(envelope, now=now)
        except RecordError:
            self.counters["refused:invalid"] += 1
            raise
        slots = self._keys.get(record.key, {})
        slot = (record.kind, author)
        old = slots.get(slot)
        if old is not None and old.record.expires <= now:
            self._drop(record.key, slot)
            old = None
        if old is not None:
            if old.envelope == envelope:
                return record
            if record.sequence == old.record.sequence:
                raise self._refuse("conflict", "two records of one author have one sequence")
            if record.sequence < old.record.sequence:
                raise self._refuse("stale", "a newer record of this author is kept already")
        if not own:
            self._check_room(author, slots, old, len(envelope.payload), now, root)
            if sponsor is not None:
                self._check_sponsor(sponsor, slots, len(envelope.payload), now)
        if slot in self._keys.get(record.key, {}):
            self._drop(record.key, slot)
        self._keep(slot, Kept(envelope, record, sponsor, now, root), now)
        return record

    def get(self, key: bytes, kind: str, *, now: float) -> list[Kept]:
        """The unexpired records of a kind under a key, tombstones too.

        Those that their authors have stored come first, then the newest.
        """
        found = [
            kept
            for (kept_kind, _), kept in self._keys.get(key, {}).items()
            if kept_kind == kind and kept.record.expires > now
        ]
        found.sort(key=lambda kept: (kept.sponsor is None, kept.record.sequence), reverse=True)
        return found

    def expire(self, *, now: float) -> int:
        """Forget what has expired; the number forgotten."""
        stale = [
            (key, slot)
            for key, slots in self._keys.items()
            for slot, kept in slots.items()
            if kept.record.expires <= now
        ]
        for key, slot in stale:
            self._drop(key, slot)
        idle = [
            author
            for author, state in self._authors.items()
            if state.records == state.sponsored == 0
            and self._refill(state, now) >= self._config.store_burst
        ]
        for author in idle:
            del self._authors[author]
        return len(stale)

    def charge(self, peer: PeerId, *, now: float) -> None:
        """Count something else that costs a signature's check against a peer's haste.

        Raises:
            RecordError: it is too fast.
        """
        self._spend(peer, now)

    def discard(self, key: bytes, kind: str, author: PeerId) -> None:
        """Forget one record, if it is kept."""
        if (kind, author) in self._keys.get(key, {}):
            self._drop(key, (kind, author))

    def _check_room(
        self,
        author: PeerId,
        slots: dict[Slot, Kept],
        old: Kept | None,
        size: int,
        now: float,
        root: PeerId | None,
    ) -> None:
        config = self._config
        freed = 0 if old is None else len(old.envelope.payload)
        if old is None:
            if self._state(author, now).records >= config.max_records_per_author:
                raise self._refuse("author_full", f"{author.short} has too many records here")
            if len(slots) >= config.max_records_per_key and not self._evict(
                _newest_of_largest(slots, root)
            ):
                raise self._refuse("key_full", "too many records under this key")
            if self._count >= config.max_records and not self._evict(
                self._crowds.newest_of_largest(root)
            ):
                raise self._refuse("full", "this peer keeps no more records")
        while self._bytes + size - freed > config.max_bytes:
            if not self._evict(self._crowds.newest_of_largest(root)):
                raise self._refuse("full", "this peer keeps no more bytes of records")

    def _evict(self, place: Place | None) -> bool:
        if place is None:
            return False
        self._drop(*place)
        self.counters["evicted"] += 1
        return True

    def _check_sponsor(
        self, sponsor: PeerId, slots: dict[Slot, Kept], size: int, now: float
    ) -> None:
        """What is handed over has a share of its own: it must not keep out what authors say."""
        config = self._config
        per_key = sum(kept.sponsor is not None for kept in slots.values())
        if (
            self._state(sponsor, now).sponsored >= config.max_sponsored
            or self._sponsored_bytes + size > config.max_sponsored_bytes
            or per_key >= config.max_sponsored_per_key
        ):
            raise self._refuse("sponsor_full", f"{sponsor.short} has handed over too much")

    def _refuse(self, reason: str, message: str) -> RecordError:
        self.counters[f"refused:{reason}"] += 1
        return RecordError(message)

    def _spend(self, author: PeerId, now: float) -> None:
        # Before the signature is looked at: verifying is what a flood would make us pay for.
        state = self._state(author, now)
        state.tokens = self._refill(state, now)
        state.at = now
        if state.tokens < 1.0:
            raise self._refuse("rate", f"{author.short} stores or claims too fast; slow down")
        state.tokens -= 1.0

    def _refill(self, state: _Author, now: float) -> float:
        gained = max(0.0, now - state.at) * self._config.stores_per_second
        return min(float(self._config.store_burst), state.tokens + gained)

    def _state(self, author: PeerId, now: float) -> _Author:
        state = self._authors.get(author)
        if state is None:
            state = self._authors[author] = _Author(float(self._config.store_burst), now)
        return state

    def _keep(self, slot: Slot, kept: Kept, now: float) -> None:
        self._keys.setdefault(kept.record.key, {})[slot] = kept
        self._crowds.add(kept.root, (kept.record.key, slot))
        self._state(slot[1], now).records += 1
        if kept.sponsor is not None:
            self._state(kept.sponsor, now).sponsored += 1
            self._sponsored_bytes += len(kept.envelope.payload)
        self._count += 1
        self._bytes += len(kept.envelope.payload)
        self._tell(kept.record.key)

    def _tell(self, key: bytes) -> None:
        self.version += 1
        if self.changed is not None:
            self.changed(key)

    def _drop(self, key: bytes, slot: Slot) -> None:
        slots = self._keys[key]
        kept = slots.pop(slot)
        self._crowds.remove(kept.root, (key, slot))
        if not slots:
            del self._keys[key]
        self._authors[slot[1]].records -= 1
        if kept.sponsor is not None:
            self._authors[kept.sponsor].sponsored -= 1
            self._sponsored_bytes -= len(kept.envelope.payload)
        self._count -= 1
        self._bytes -= len(kept.envelope.payload)
        self._tell(key)


def _newest_of_largest(slots: dict[Slot, Kept], root: PeerId | None) -> Place | None:
    """See `Crowds`: among the records of one key."""
    crowd = largest(Counter(kept.root for kept in slots.values()), root)
    if crowd is None:
        return None
    slot = next(slot for slot, kept in reversed(slots.items()) if kept.root == crowd)
    return slots[slot].record.key, slot
