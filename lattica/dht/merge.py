"""Many peers' answers about one key, made one: the newest verified record per author."""

from __future__ import annotations

from collections import Counter
from typing import TypeVar

import msgspec

from lattica.config import DhtConfig
from lattica.dht.digests import records_digest
from lattica.dht.records import Found, Record, Verifier, decode_value
from lattica.errors import RecordError
from lattica.identity import wire
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed

T = TypeVar("T")


class Merge:
    """Gathers the records of one kind under one key. What does not hold is counted and dropped."""

    def __init__(
        self, key: bytes, kind: str, verifier: Verifier, config: DhtConfig, counters: Counter[str]
    ) -> None:
        self._key = key
        self._kind = kind
        self._verifier = verifier
        self._config = config
        self._counters = counters
        self._newest: dict[PeerId, tuple[Record, Signed]] = {}
        self._digest: bytes | None = b""  # None: to be made

    def add_encoded(self, data: bytes | memoryview, *, now: float) -> None:
        """Add one answer as it came from the network."""
        if not len(data):
            return
        if len(data) > self._config.max_reply:
            self._counters["dropped:oversized_reply"] += 1
            return
        try:
            envelopes = wire.decode(data, tuple[Signed, ...])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self._counters["dropped:bad_reply"] += 1
            return
        if len(envelopes) > self._config.max_records_per_key:
            self._counters["dropped:too_many"] += 1
        for envelope in envelopes[: self._config.max_records_per_key]:
            self.add(envelope, now=now)

    def add(self, envelope: Signed, *, now: float) -> None:
        """Add one envelope."""
        try:
            record = self._verifier.open(envelope, now=now)
        except RecordError:
            self._counters["dropped:invalid_record"] += 1
            return
        if record.key != self._key or record.kind != self._kind:
            self._counters["dropped:wrong_key"] += 1
            return
        known = self._newest.get(envelope.author)
        if known is None or known[0].sequence < record.sequence:
            self._newest[envelope.author] = record, envelope
            self._digest = None

    def digest(self) -> bytes:
        """Of the newest of each author, as `records_digest` makes it."""
        if self._digest is None:
            self._digest = records_digest(envelope for _, envelope in self._newest.values())
        return self._digest

    def found(self, value_type: type[T]) -> list[Found[T]]:
        """The records that stand, newest first; those taken back by their author are out."""
        found: list[Found[T]] = []
        for author, (record, _) in self._newest.items():
            if record.removed:
                continue
            try:
                value = decode_value(record.value, value_type, record.kind)
            except RecordError:
                self._counters["dropped:mistyped"] += 1
                continue
            found.append(Found(author, value, record.expires, record.sequence))
        found.sort(key=lambda record: (-record.sequence, record.author.raw))
        return found
