"""Who waits for changes under which key, at a peer that keeps records."""

from __future__ import annotations

import hashlib
from collections import Counter

import anyio

from lattica.config import DhtConfig
from lattica.dht.storage import Kept, Storage
from lattica.errors import BusyError
from lattica.identity.keys import PeerId

DIGEST = 16  # bytes


class Watchers:
    """Answers those who wait, in bounded numbers."""

    def __init__(self, storage: Storage, config: DhtConfig) -> None:
        self._storage = storage
        self._config = config
        self._events: dict[bytes, anyio.Event] = {}
        self._keys: Counter[bytes] = Counter()  # how many wait for each
        self._waiting: Counter[PeerId] = Counter()
        storage.changed = self._changed

    def __len__(self) -> int:
        """How many wait."""
        return self._waiting.total()

    async def wait(self, peer: PeerId, key: bytes, kind: str, known: bytes, now: float) -> bytes:
        """Until the digest is another than `known`, or some time has passed; what it is then.

        `now` is in seconds since the epoch.

        Raises:
            BusyError: this peer, or all together, wait for too many keys.
        """
        digest = self.digest(key, kind, now)
        if digest != known:
            return digest
        if (
            self._waiting[peer] >= self._config.watches_per_peer
            or len(self) >= self._config.max_watches
        ):
            raise BusyError("too many watches here", retry_after=self._config.watch_for)
        self._waiting[peer] += 1
        self._keys[key] += 1
        try:
            with anyio.move_on_after(self._config.watch_for):
                while digest == known:
                    await self._events.setdefault(key, anyio.Event()).wait()
                    digest = self.digest(key, kind, now)
        finally:
            self._waiting[peer] -= 1
            if not self._waiting[peer]:
                del self._waiting[peer]
            self._keys[key] -= 1
            if not self._keys[key]:
                del self._keys[key]
                self._events.pop(key, None)
        return digest

    def digest(self, key: bytes, kind: str, now: float) -> bytes:
        """Of who says what under a key: a mere renewal does not change it."""
        return digest_of(self._storage.get(key, kind, now=now))

    def _changed(self, key: bytes) -> None:
        event = self._events.pop(key, None)
        if event is not None:
            event.set()


def digest_of(kept: list[Kept]) -> bytes:
    """Of authors and values."""
    said = sorted(
        (each.envelope.author.raw, each.record.value) for each in kept if not each.record.removed
    )
    hashed = hashlib.blake2b(digest_size=DIGEST)
    for author, value in said:
        hashed.update(author + len(value).to_bytes(4, "big") + value)
    return hashed.digest()
