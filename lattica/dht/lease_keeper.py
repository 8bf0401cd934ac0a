"""One replica's leases: granted by the clock, and on disk before anybody is told of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from functools import partial
from pathlib import Path

import anyio
import msgspec

from lattica.clock import Clock
from lattica.config import DhtConfig
from lattica.dht.lease_book import LeaseBook, open_claim, read_claim
from lattica.dht.messages import Lease
from lattica.errors import BusyError, RecordError
from lattica.files import Snapshots
from lattica.identity import wire
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed

NAME = "leases.msgpack"
TRY_AGAIN = 5.0  # seconds after which a disk may have room again


class LeaseKeeper:
    """Answers claimants. Without a directory a restart forgets what was granted."""

    def __init__(
        self, config: DhtConfig, clock: Clock, directory: Path | None, counters: Counter[str]
    ) -> None:
        self._config = config
        self._clock = clock
        self._counters = counters
        self._file = None if directory is None else Snapshots(directory / NAME)
        self._book = LeaseBook(config, counters)
        self._saving = anyio.Lock()
        self._unwritten: set[bytes] = set()  # keys
        self._version = 0

    def load(self) -> None:
        """What was granted before a restart still holds, for the whole length of each lease.

        A file that is damaged holds nothing: it is replaced as a whole, so no crash does that.
        """
        if self._file is None:
            return
        now = self._clock.elapsed()
        try:
            claims = wire.decode(self._file.path.read_bytes(), tuple[Signed, ...])
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
            return
        for envelope in claims:
            with contextlib.suppress(RecordError):
                self._book.restore(envelope, read_claim(envelope, self._config), now=now)

    async def ask(self, envelope: Signed, *, root: PeerId | None = None) -> Lease | None:
        """See `LeaseBook.ask`.

        Raises:
            RecordError: no claim, or one that was not made just now.
            BusyError: there is no room, also on the disk.
        """
        try:
            claim = open_claim(envelope, time=self._clock.time(), config=self._config)
        except RecordError:
            self._counters["refused:claim"] += 1
            raise
        before = self._book.grants
        lease = self._book.ask(envelope, claim, now=self._clock.elapsed(), root=root)
        if self._file is not None and self._book.grants != before:
            self._unwritten.add(claim.key)
        if claim.key in self._unwritten:
            # A lease that a crash can take back is none. Renewals need no writing: after a
            # restart the whole length counts again.
            await self._write(envelope, claim.key)
            return self.told(claim.key)
        return lease

    def current(self) -> list[tuple[bytes, Signed]]:
        """Which keys are had now, and the claims of those who have them."""
        return self._book.current(now=self._clock.elapsed())

    def told(self, key: bytes) -> Lease | None:
        """Who has a key here."""
        return self._book.told(key, now=self._clock.elapsed())

    async def _write(self, envelope: Signed, key: bytes) -> None:
        assert self._file is not None
        async with self._saving:
            if key not in self._unwritten:
                return  # written with another's, meanwhile
            self._version += 1
            claims = tuple(envelope for _, envelope in self.current())
            keys = tuple(self._unwritten)
            state = partial(wire.encode, claims)
            try:
                await asyncio.to_thread(self._file.write, state, self._version)
            except OSError as error:
                self._book.forget(envelope, key)
                self._unwritten.discard(key)
                self._counters["leases_not_saved"] += 1
                message = f"the lease cannot be written down: {error}"
                raise BusyError(message, retry_after=TRY_AGAIN) from None
            self._unwritten.difference_update(keys)
