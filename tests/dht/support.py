"""Identities, envelopes and meshes for the DHT's tests, all from seeds."""

from __future__ import annotations

import hashlib

from lattica.config import DhtConfig
from lattica.dht.keys import dht_key
from lattica.dht.records import DOMAIN, Kinds, Record, Verifier
from lattica.dht.storage import Storage
from lattica.identity import wire
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed

NOW = 1_000_000.0
KEY = dht_key("test", "key")


def identity(number: int) -> Identity:
    return Identity(hashlib.sha256(f"dht-test-{number}".encode()).digest())


def peer_id(number: int) -> PeerId:
    """Any 32 bytes will do where nothing is signed; far cheaper than a key."""
    return PeerId(hashlib.sha256(f"dht-peer-{number}".encode()).digest())


def kinds() -> Kinds:
    known = Kinds()
    known.register("note", str)
    known.register("blob", bytes)
    return known


def storage(config: DhtConfig | None = None) -> Storage:
    config = config or DhtConfig()
    return Storage(Verifier(kinds(), config), config)


def envelope(
    author: int = 0,
    *,
    key: bytes = KEY,
    kind: str = "note",
    sequence: int = 1,
    expires: float = NOW + 60,
    value: object = "hello",
    removed: bool = False,
    domain: str = DOMAIN,
) -> Signed:
    data = b"" if removed else wire.encode(value)
    record = Record(key, kind, sequence, expires, data, removed)
    return Signed.seal(identity(author), domain, record)
