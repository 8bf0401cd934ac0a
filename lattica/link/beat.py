"""Heartbeats beside QUIC: 25 bytes that only the other end of this link can have made.

A ping through QUIC costs both ends a packet each way with all its bookkeeping, in Python
about 170 microseconds; with a thousand idle links that alone fills half a core. A beat
costs a tenth. It has the form of a short header packet (RFC 8999), so that it takes every
path a link takes, but it is too short to be one: header protection (RFC 9001 §5.4.2)
needs at least 20 bytes behind the connection id. So the length alone tells them apart.

    0x40 | kind     1 byte
    destination     8 bytes, an id of the receiving end that only beats use
    counter         4 bytes, big endian, growing: an old beat cannot be replayed
    tag            12 bytes, keyed BLAKE2b over all of that

Keys and ids come from the session's channel binding (`lattica.link.secrets`), each end's
its own, so a beat cannot be reflected either. No I/O.
"""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum

from lattica.link.header import CONNECTION_ID

_TAG = 12  # bytes
_KEY = 32  # bytes
_HEAD = struct.Struct(f"!B{CONNECTION_ID}sI")
SIZE = _HEAD.size + _TAG
_FIXED_BIT = 0x40
_MAX_COUNTER = 2**32 - 1


class Kind(IntEnum):
    """What a beat is for."""

    ASK = 0
    ANSWER = 1


class Beats:
    """One end's part."""

    __slots__ = ("_heard", "_in_key", "_out_key", "_sent", "_their_id", "id")

    def __init__(self, binding: bytes, *, is_dialer: bool) -> None:
        """`binding` is 32 bytes that only the two ends of this link know."""
        self.id, self._in_key = _derive(binding, b"to dialer" if is_dialer else b"to acceptor")
        self._their_id, self._out_key = _derive(
            binding, b"to acceptor" if is_dialer else b"to dialer"
        )
        self._sent = 0
        self._heard = 0

    def make(self, kind: Kind) -> bytes:
        """The next beat to send."""
        self._sent = min(self._sent + 1, _MAX_COUNTER)  # 60 years of them
        head = _HEAD.pack(_FIXED_BIT | kind, self._their_id, self._sent)
        return head + hashlib.blake2b(head, key=self._out_key, digest_size=_TAG).digest()

    def take(self, datagram: bytes) -> Kind | None:
        """What a datagram of `SIZE` bytes is; None if it is forged or old."""
        head = datagram[: _HEAD.size]
        tag = hashlib.blake2b(head, key=self._in_key, digest_size=_TAG).digest()
        # Whoever could use the time that this takes sends one guess in 2^96 for a `heard`.
        if datagram[_HEAD.size :] != tag:
            return None
        counter = _HEAD.unpack(head)[2]
        if counter <= self._heard:
            return None
        self._heard = counter
        return Kind.ANSWER if head[0] & 1 else Kind.ASK


def _derive(binding: bytes, label: bytes) -> tuple[bytes, bytes]:
    """The id and the key of the beats in one direction."""
    material = hashlib.blake2b(
        label, key=binding, digest_size=CONNECTION_ID + _KEY, person=b"lattica beat v1"
    ).digest()
    return material[:CONNECTION_ID], material[CONNECTION_ID:]
