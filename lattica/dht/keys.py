"""Places in the 160-bit key space: a peer's node id, and the keys of records."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from lattica.errors import RecordError
from lattica.identity.keys import PeerId

KEY_BYTES = 20  # kademlia's table assumes 160 bits
KEY_BITS = 8 * KEY_BYTES


@lru_cache(maxsize=16_384)  # each answer to a look-up names twenty peers, mostly the same ones
def node_id(peer: PeerId) -> bytes:
    """Where a peer stands: a hash of its proven key, so nobody chooses a place freely."""
    return _digest(b"node", peer.raw)


def dht_key(kind: str, name: str | bytes | PeerId) -> bytes:
    """The 20-byte key of what is called `name` among things of one `kind`."""
    raw = name.raw if isinstance(name, PeerId) else name
    return _digest(b"key:" + kind.encode(), raw.encode() if isinstance(raw, str) else raw)


def checked(key: bytes) -> bytes:
    """The key.

    Raises:
        RecordError: it is none.
    """
    if len(key) != KEY_BYTES:
        raise RecordError(f"a key is {KEY_BYTES} bytes, not {len(key)}; make one with dht_key()")
    return key


def _digest(domain: bytes, data: bytes) -> bytes:
    # The domain's length comes first, so that no two (domain, data) pairs collide.
    tag = len(domain).to_bytes(2, "big") + domain
    return hashlib.sha256(b"lattica-dht-v1\x00" + tag + data).digest()[:KEY_BYTES]
