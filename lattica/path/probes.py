"""Probes of a path and the replies to them: their form, their keys, what is dropped.

    kind (1 byte)  tag (8)  sequence (8)  size of the probe (2)  authenticator (16)  zeros

The first byte has QUIC's fixed bit clear. A probe is padded to the size that it asks about; its
reply has the same fields and no padding, so it is never larger than what it answers. Both are
authenticated (keyed BLAKE2s) with keys that both ends derive from their link's channel binding,
one for each direction; the tag, derived likewise, says which link it is. A sequence number is
answered once, and a reply is believed once and only to a probe of ours.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections import Counter, OrderedDict

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from lattica.path.interface import PROBE, PROBE_REPLY

_HEADER = struct.Struct(">B8sQH")
_AUTHENTICATOR = 16
OVERHEAD = _HEADER.size + _AUTHENTICATOR
_TAG = 8
_KEY = 32
_INFO = b"lattica path probes v1"
_WINDOW = 64  # sequence numbers behind the newest that may still come
_MAX_OUTSTANDING = 64


class ProbeKeys(msgspec.Struct, frozen=True):
    """One end's keys: the tag of the link, and what it signs and verifies with."""

    tag: bytes
    send: bytes
    receive: bytes

    @classmethod
    def derive(cls, binding: bytes, *, is_dialer: bool) -> ProbeKeys:
        """From a link's channel binding (RFC 5869, expand only: it is a key already)."""
        material = HKDFExpand(hashes.SHA256(), _TAG + 2 * _KEY, _INFO).derive(binding)
        tag, dialer, acceptor = material[:_TAG], material[_TAG:-_KEY], material[-_KEY:]
        return cls(tag, dialer, acceptor) if is_dialer else cls(tag, acceptor, dialer)


class Received(msgspec.Struct, frozen=True):
    """What came of a probe or a reply. Both fields empty: it was dropped."""

    reply: bytes = b""  # to be sent back
    arrived: int = 0  # bytes: a probe of ours of this size has reached the other end


_DROPPED = Received()


def tag_of(datagram: bytes) -> bytes:
    """Which link a probe or reply claims to be of; shorter if cut."""
    return datagram[1 : 1 + _TAG]


class Prober:
    """Makes and answers the probes of one link."""

    def __init__(self, keys: ProbeKeys, counters: Counter[str]) -> None:
        """`counters` take what was dropped, and why."""
        self.tag = keys.tag
        self._send = keys.send
        self._receive = keys.receive
        self._counters = counters
        self._next = 1
        self._outstanding: OrderedDict[int, int] = OrderedDict()
        self._newest = 0
        self._seen = 0  # bit n: the sequence number `newest` - n was answered

    def probe(self, size: int) -> bytes:
        """A datagram of exactly `size` bytes."""
        sequence, self._next = self._next, self._next + 1
        self._outstanding[sequence] = size
        if len(self._outstanding) > _MAX_OUTSTANDING:
            self._outstanding.popitem(last=False)
        return self._pack(PROBE, sequence, size).ljust(size, b"\0")

    def receive(self, datagram: bytes) -> Received:
        """Take in a datagram whose tag is this link's."""
        if len(datagram) < OVERHEAD:
            return self._drop("malformed")
        kind, _, sequence, size = _HEADER.unpack_from(datagram)
        authenticator = datagram[_HEADER.size : OVERHEAD]
        expected = _authenticate(self._receive, datagram[: _HEADER.size])
        if not hmac.compare_digest(authenticator, expected):
            return self._drop("forged")
        if kind == PROBE:
            return self._answer(sequence, size, len(datagram))
        if self._outstanding.get(sequence) != size:
            return self._drop("replayed")
        del self._outstanding[sequence]
        return Received(arrived=size)

    # ------------------------------------------------------------------ inside

    def _answer(self, sequence: int, size: int, length: int) -> Received:
        if size != length:
            return self._drop("cut")
        ahead = sequence - self._newest
        if ahead > 0:
            self._seen = (self._seen << ahead | 1) & ((1 << _WINDOW) - 1) if ahead < _WINDOW else 1
            self._newest = sequence
        elif ahead <= -_WINDOW or self._seen >> -ahead & 1:
            return self._drop("replayed")
        else:
            self._seen |= 1 << -ahead
        return Received(reply=self._pack(PROBE_REPLY, sequence, size))

    def _pack(self, kind: int, sequence: int, size: int) -> bytes:
        header = _HEADER.pack(kind, self.tag, sequence, size)
        return header + _authenticate(self._send, header)

    def _drop(self, reason: str) -> Received:
        self._counters[f"probe:{reason}"] += 1
        return _DROPPED


def _authenticate(key: bytes, header: bytes) -> bytes:
    return hashlib.blake2s(header, key=key, digest_size=_AUTHENTICATOR).digest()
