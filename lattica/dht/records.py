"""Signed records: what they hold, which kinds there are, and when one is believed."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from lattica.config import DhtConfig
from lattica.dht.keys import KEY_BYTES, node_id
from lattica.dht.messages import MAX_ADDRESSES, PeerAddresses
from lattica.errors import RecordError, SignatureError
from lattica.identity import wire
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed

DOMAIN = "dht-record"
PEER = "peer"
MICROSECONDS = 1_000_000  # sequences are authors' clocks
MAX_SEQUENCE = 2**63 - 1
VERIFIED_KEPT = 2048
_KIND = re.compile(r"[a-z][a-z0-9_.-]{0,31}")

T = TypeVar("T")
Check = Callable[[PeerId, "Record", Any], bool]


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an author says under a key. One author has one record per key and kind."""

    key: bytes  # 20 bytes
    kind: str
    sequence: int  # a higher one replaces a lower one of the same author, key and kind
    expires: float  # seconds since the Unix epoch
    value: bytes  # MessagePack of the kind's type; empty when removed
    removed: bool = False  # a tombstone: the author takes back what it said before


class Found(msgspec.Struct, Generic[T], frozen=True):
    """A verified record, as `Dht.get` returns it."""

    author: PeerId
    value: T
    expires: float  # seconds since the Unix epoch
    sequence: int


class Kinds:
    """The kinds of record a peer understands, and the type of each one's value."""

    def __init__(self) -> None:
        self._types: dict[str, tuple[Any, Check | None]] = {}
        self.register(PEER, PeerAddresses, check=_stands_at_its_own_key)

    def register(self, kind: str, value_type: Any, *, check: Check | None = None) -> None:
        """Accept records of `kind`, whose value must decode as `value_type`.

        `check(author, record, value)` may ask for more, such as that the value names its author.

        Raises:
            RecordError: the kind's name is not of the form a-z0-9_.-, or has another type already.
        """
        if not _KIND.fullmatch(kind):
            raise RecordError(f"{kind!r} is no name for a kind: use a-z, 0-9, '_', '.', '-'")
        known = self._types.get(kind)
        if known is not None and known[0] is not value_type:
            raise RecordError(f"records of kind {kind!r} hold {known[0]!r}, not {value_type!r}")
        self._types[kind] = (value_type, check)

    def check(self, author: PeerId, record: Record) -> Any:
        """The decoded value of a record that is of a known kind and well typed.

        Raises:
            RecordError: unknown kind, or a value that does not fit it.
        """
        entry = self._types.get(record.kind)
        if entry is None:
            raise RecordError(f"unknown kind of record {record.kind[:32]!r}; see register_kind()")
        value_type, check = entry
        if record.removed:
            if record.value:
                raise RecordError("a removed record holds no value")
            return None
        value = decode_value(record.value, value_type, record.kind)
        if check is not None and not check(author, record, value):
            raise RecordError(f"{author.short} may not publish this {record.kind!r} record")
        return value


def decode_value(data: bytes, value_type: type[T], kind: str) -> T:
    """A record's value.

    Raises:
        RecordError: it is not a `value_type`.
    """
    try:
        return wire.decode(data, value_type)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RecordError(f"the value of a {kind!r} record does not fit: {error}") from None


class Verifier:
    """Believes an envelope or says why not. Remembers those it has verified."""

    def __init__(self, kinds: Kinds, config: DhtConfig) -> None:
        self._kinds = kinds
        self._config = config
        self._verified: OrderedDict[Signed, Record] = OrderedDict()

    def open(self, envelope: Signed, *, now: float) -> Record:
        """The record in an envelope.

        Raises:
            RecordError: oversized, forged, expired, dated too far ahead, or mistyped.
        """
        if len(envelope.payload) > self._config.max_record:
            raise RecordError(
                f"a record of {len(envelope.payload)} bytes is larger than "
                f"{self._config.max_record}; put large values into blocks"
            )
        record = self._verified.get(envelope)
        if record is None:
            record = self._verify(envelope)
            self._verified[envelope] = record
            if len(self._verified) > VERIFIED_KEPT:
                self._verified.popitem(last=False)
        if record.expires <= now:
            raise RecordError(f"the record expired {now - record.expires:.1f} s ago")
        if record.sequence > (now + self._config.max_skew) * MICROSECONDS:
            raise RecordError("the record's sequence is ahead of time; check the author's clock")
        if record.expires > now + self._config.max_ttl + self._config.max_skew:
            raise RecordError(
                f"the record would live {record.expires - now:.0f} s, longer than "
                f"{self._config.max_ttl:.0f} s; check the author's clock"
            )
        return record

    def _verify(self, envelope: Signed) -> Record:
        try:
            record = envelope.open(DOMAIN, Record)
        except SignatureError as error:
            raise RecordError(f"the record is forged: {error}") from None
        if len(record.key) != KEY_BYTES:
            raise RecordError(f"a key is {KEY_BYTES} bytes, not {len(record.key)}")
        if not 0 <= record.sequence <= MAX_SEQUENCE or not math.isfinite(record.expires):
            raise RecordError("the record's sequence or expiry is out of range")
        self._kinds.check(envelope.author, record)
        return record


def seal(identity: Identity, record: Record) -> Signed:
    """Sign a record."""
    return Signed.seal(identity, DOMAIN, record)


def _stands_at_its_own_key(author: PeerId, record: Record, value: PeerAddresses) -> bool:
    return record.key == node_id(author) and len(value.addresses) <= MAX_ADDRESSES
