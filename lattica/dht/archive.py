"""When the records that a peer keeps for others are written to disk, and what it takes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import astuple

from lattica.clock import Clock
from lattica.config import DhtConfig
from lattica.dht.record_file import RecordFile
from lattica.dht.storage import Kept, Storage
from lattica.errors import RecordError
from lattica.identity.keys import PeerId


class Archive:
    """A storage's life over restarts; without a directory there is none."""

    def __init__(
        self,
        storage: Storage,
        directory: Path | None,
        *,
        config: DhtConfig,
        clock: Clock,
        counters: Counter[str],
    ) -> None:
        self._storage = storage
        self._file = RecordFile(directory)
        self._config = config
        self._clock = clock
        self._counters = counters
        self._saved = 0, float("-inf")  # the storage's version, and when

    def load(self, local: PeerId) -> None:
        """What was kept in the last run, but for what `local`, this peer, said: that it says anew.

        What has expired meanwhile is forgotten.
        """
        now = self._clock.time()
        for envelope, sponsor, root in map(astuple, self._file.load()):
            if envelope.author != local:
                with contextlib.suppress(RecordError):
                    self._storage.store(
                        envelope, now=now, sponsor=sponsor, root=root, restored=True
                    )

    async def save_if_due(self) -> None:
        """Once in `save_every` seconds, if something changed; off the event loop."""
        now = self._clock.monotonic()
        if now - self._saved[1] >= self._config.save_every and self._has_news():
            self._saved = self._storage.version, now
            # A busy disk may take seconds, and others wait for answers meanwhile.
            await asyncio.to_thread(self._write, list(self._storage), self._storage.version)

    def close(self) -> None:
        """Write what changed, before the peer goes."""
        if self._has_news():
            self._write(list(self._storage), self._storage.version)

    def _has_news(self) -> bool:
        return self._file.is_kept and self._storage.version != self._saved[0]

    def _write(self, records: Sequence[Kept], version: int) -> None:
        try:
            self._file.save(records, version)
        except OSError:
            self._counters["records_not_saved"] += 1
