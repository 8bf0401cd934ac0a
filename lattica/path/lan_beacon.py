"""What a peer tells its local network: who it is, readable for members of its mesh only. No I/O.

    nonce (12)  sealed: version (1), peer (32), UDP port (2), time (8); 16 of seal

The key follows from the mesh's id and the hour (HKDF), and the name that the announcement goes by
is part of what is sealed. So a stranger on the same network learns that somebody runs
Lattica, and neither in which mesh nor whether it is the same peer as an hour ago. A copy is of
no use: who is dialled because of it has to prove its key.
"""

from __future__ import annotations

import os
import struct
from collections import Counter

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lattica.identity.keys import PeerId

HOUR = 3600.0  # seconds
SIZE = 12 + 43 + 16  # bytes
_BODY = struct.Struct(">B32sHQ")
_VERSION = 1
_INFO = b"lattica lan v1"
_NONCE = 12


class Neighbour(msgspec.Struct, frozen=True):
    """A member of the mesh on the same network, as it says itself."""

    peer: PeerId
    port: int  # UDP


class Beacon:
    """Makes and reads announcements of one mesh. Times in seconds since the Unix epoch."""

    def __init__(self, mesh: PeerId, counters: Counter[str]) -> None:
        """`counters` take what was dropped, and why."""
        self._mesh = mesh
        self._counters = counters
        self._keys: dict[int, ChaCha20Poly1305] = {}

    def make(self, peer: PeerId, port: int, name: str, now: float) -> bytes:
        """An announcement that goes by `name`."""
        nonce = os.urandom(_NONCE)
        body = _BODY.pack(_VERSION, peer.raw, port, int(now))
        return nonce + self._key(int(now // HOUR)).encrypt(nonce, body, name.encode())

    def read(self, announcement: bytes, name: str, now: float) -> Neighbour | None:
        """Who announces; None if nobody of this mesh does now."""
        if len(announcement) != SIZE:
            self._counters["lan:malformed"] += 1
            return None
        nonce, sealed = announcement[:_NONCE], announcement[_NONCE:]
        hour = int(now // HOUR)
        for each in (hour, hour - 1, hour + 1):  # clocks differ, and announcements are kept
            try:
                body = self._key(each).decrypt(nonce, sealed, name.encode())
            except InvalidTag:
                continue
            version, raw, port, _ = _BODY.unpack(body)
            if version != _VERSION or not port:
                self._counters["lan:malformed"] += 1
                return None
            return Neighbour(PeerId(raw), port)
        self._counters["lan:others"] += 1  # another mesh, an old one, or made up
        return None

    def _key(self, hour: int) -> ChaCha20Poly1305:
        key = self._keys.get(hour)
        if key is None:
            if len(self._keys) >= 8:
                self._keys.clear()
            salt = hour.to_bytes(8, "big", signed=True)
            material = HKDF(hashes.SHA256(), 32, salt, _INFO).derive(self._mesh.raw)
            key = self._keys[hour] = ChaCha20Poly1305(material)
        return key
