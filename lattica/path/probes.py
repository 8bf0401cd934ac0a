"""Probes of a path and the replies to them: their form, their keys, what is dropped.

    kind (1 byte)  tag (8)  sequence (8)  sealed body (38)  zeros
    body: flags (1)  size of the probe (2)  family (1)  address (16)  port (2)

The first byte has QUIC's fixed bit clear. A probe is padded to the size that it asks about; its
reply has the same fields and no padding, so it is never larger than what it answers. A reply
tells from which address the probe came, as its receiver saw it: a peer behind a NAT learns so what
it looks like from outside (the job of STUN, RFC 8489). The body is sealed (ChaCha20-Poly1305, the
header as associated data) with keys that both ends derive from their link's channel binding, one
for each direction; the tag, derived likewise, says which link it is. So nobody else makes a
probe, and nobody else reads an address. A sequence number is answered once, and a reply is
believed once and only to a probe of ours.
"""

from __future__ import annotations

import ipaddress
import struct
from collections import Counter, OrderedDict
from enum import Enum, IntFlag

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from lattica.errors import AddressError
from lattica.path import addresses as text
from lattica.path.interface import PROBE, PROBE_REPLY

_HEADER = struct.Struct(">B8sQ")
_BODY = struct.Struct(">BHB16sH")
_SEAL = 16
OVERHEAD = _HEADER.size + _BODY.size + _SEAL  # bytes: the smallest probe, and every reply
_TAG = 8
_KEY = 32
_INFO = b"lattica path probes v2"
_WINDOW = 4096  # sequence numbers behind the newest that may still come
_MAX_OUTSTANDING = 1024


class Flags(IntFlag):
    """What a probe says besides its size."""

    NONE = 0
    ACTIVE = 1  # its sender sends the link's packets this way
    KNOCK = 2  # only to see whether it comes in: neither answered nor followed


_KNOWN = Flags.ACTIVE | Flags.KNOCK


class ProbeKeys(msgspec.Struct, frozen=True):
    """One end's keys: the tag of the link, and what it seals and opens with."""

    tag: bytes
    send: bytes
    receive: bytes

    @classmethod
    def derive(cls, binding: bytes, *, is_dialer: bool) -> ProbeKeys:
        """From a link's channel binding (RFC 5869, expand only: it is a key already)."""
        material = HKDFExpand(hashes.SHA256(), _TAG + 2 * _KEY, _INFO).derive(binding)
        tag, dialer, acceptor = material[:_TAG], material[_TAG:-_KEY], material[-_KEY:]
        return cls(tag, dialer, acceptor) if is_dialer else cls(tag, acceptor, dialer)


class Kind(Enum):
    """What a datagram turned out to be."""

    PROBE = "probe"
    REPLY = "reply"


class Received(msgspec.Struct, frozen=True):
    """An authentic probe of the other end, or its first reply to a probe of ours."""

    kind: Kind
    sequence: int
    size: int  # bytes of the probe
    flags: Flags = Flags.NONE
    observed: str = ""  # `host:port` that a probe of ours came from; replies only


def tag_of(datagram: bytes) -> bytes:
    """Which link a probe or reply claims to be of; shorter if cut."""
    return datagram[1 : 1 + _TAG]


class Prober:
    """Makes, opens and answers the probes of one link."""

    def __init__(self, keys: ProbeKeys, counters: Counter[str]) -> None:
        """`counters` take what was dropped, and why."""
        self.tag = keys.tag
        self._send = ChaCha20Poly1305(keys.send)
        self._receive = ChaCha20Poly1305(keys.receive)
        self._counters = counters
        self._next = 1
        self._outstanding: OrderedDict[int, int] = OrderedDict()
        self._newest = 0
        self._seen = 0  # bit n: the sequence number `newest` - n was answered

    def probe(self, size: int = OVERHEAD, flags: Flags = Flags.NONE) -> tuple[int, bytes]:
        """A sequence number, and a datagram of exactly `size` bytes.

        It may be sent to many addresses at once: it is answered where it arrives first.
        """
        sequence, self._next = self._next, self._next + 1
        self._outstanding[sequence] = size
        if len(self._outstanding) > _MAX_OUTSTANDING:
            self._outstanding.popitem(last=False)
        body = _BODY.pack(flags, size, 0, bytes(16), 0)
        return sequence, self._pack(PROBE, sequence, body).ljust(size, b"\0")

    def receive(self, datagram: bytes) -> Received | None:
        """Take in a datagram whose tag is this link's; None if it was dropped.

        A probe is to be answered with `reply`.
        """
        if len(datagram) < OVERHEAD:
            self._drop("malformed")
            return None
        kind, _, sequence = _HEADER.unpack_from(datagram)
        header, sealed = datagram[: _HEADER.size], datagram[_HEADER.size : OVERHEAD]
        try:
            body = self._receive.decrypt(_nonce(kind, sequence), sealed, header)
        except InvalidTag:
            self._drop("forged")
            return None
        flags, size, family, address, port = _BODY.unpack(body)
        if kind == PROBE:
            if size != len(datagram):
                self._drop("cut")
                return None
            if not self._is_new(sequence):
                self._drop("replayed")
                return None
            return Received(Kind.PROBE, sequence, size, Flags(flags & _KNOWN))
        if self._outstanding.get(sequence) != size:
            self._drop("replayed")
            return None
        del self._outstanding[sequence]
        return Received(Kind.REPLY, sequence, size, observed=_address(family, address, port))

    def reply(self, probe: Received, source: str = "") -> bytes:
        """The answer to a probe that came from `source`, a `host:port` or anything else."""
        family, address, port = _packed(source)
        body = _BODY.pack(0, probe.size, family, address, port)
        return self._pack(PROBE_REPLY, probe.sequence, body)

    # ------------------------------------------------------------------ inside

    def _is_new(self, sequence: int) -> bool:
        ahead = sequence - self._newest
        if ahead > 0:
            self._seen = (self._seen << ahead | 1) & ((1 << _WINDOW) - 1) if ahead < _WINDOW else 1
            self._newest = sequence
            return True
        if ahead <= -_WINDOW or self._seen >> -ahead & 1:
            return False
        self._seen |= 1 << -ahead
        return True

    def _pack(self, kind: int, sequence: int, body: bytes) -> bytes:
        header = _HEADER.pack(kind, self.tag, sequence)
        return header + self._send.encrypt(_nonce(kind, sequence), body, header)

    def _drop(self, reason: str) -> None:
        self._counters[f"probe:{reason}"] += 1


def _nonce(kind: int, sequence: int) -> bytes:
    """Never used twice with a key: own probes count up, and a reply is made once for each probe."""
    return bytes((kind, 0, 0, 0)) + sequence.to_bytes(8, "big")


def _packed(source: str) -> tuple[int, bytes, int]:
    if text.is_relay(source):
        return 0, bytes(16), 0  # that would be the relay's
    try:
        host, port = text.split(text.strip_scheme(source))
        ip = ipaddress.ip_address(host.partition("%")[0])
    except (AddressError, ValueError):
        return 0, bytes(16), 0  # a test's
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.version, ip.packed.ljust(16, b"\0"), port


def _address(family: int, address: bytes, port: int) -> str:
    if family == 4:
        return text.join(str(ipaddress.IPv4Address(address[:4])), port)
    if family == 6:
        return text.join(str(ipaddress.IPv6Address(address)), port)
    return ""
