"""Stateless Retry (RFC 9000 §8.1.2): a dialer shows that it receives at its address. No I/O.

A server under a flood of first packets answers each by a Retry, keeps nothing, and begins
a connection only for who comes back with the token. Whoever forges addresses never does.
"""

from __future__ import annotations

import hmac
import os
import struct
from hashlib import sha256

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lattica.link import header

LIFETIME = 10.0  # seconds
_MAC = 16  # bytes
_HEAD = struct.Struct(">dB")  # when it expires, length of the original destination id
# RFC 9001 §5.8: the same for everybody, so the tag only tells packets that were damaged
# or made by someone who has not seen the first packet.
_KEY = bytes.fromhex("be0c690b9f66575a1d766b54e368c84e")
_NONCE = bytes.fromhex("461599d35d632bf2239825bb")


class RetryTokens:
    """Makes and checks the tokens of one endpoint. Times in seconds of its clock."""

    def __init__(self, *, lifetime: float = LIFETIME) -> None:
        self._key = os.urandom(32)  # lost with the process, and the tokens with it
        self._lifetime = lifetime

    def issue(self, source: str, original: bytes, chosen: bytes, now: float) -> bytes:
        """A token for a dialer at `source`.

        `original` is the destination id of its first packet, `chosen` the one that the
        Retry tells it to use.
        """
        body = _HEAD.pack(now + self._lifetime, len(original)) + original
        return body + self._mac(body, source, chosen)

    def check(self, token: bytes, source: str, chosen: bytes, now: float) -> bytes | None:
        """The original destination id; None if the token does not hold.

        `chosen` is the destination id of the packet that brings the token.
        """
        body, mac = token[:-_MAC], token[-_MAC:]
        if not hmac.compare_digest(mac, self._mac(body, source, chosen)):
            return None
        # Only this endpoint makes such a code, so what is before it has the right form.
        expires, _ = _HEAD.unpack_from(body)
        return body[_HEAD.size :] if now < expires else None

    def _mac(self, body: bytes, source: str, chosen: bytes) -> bytes:
        parts = (body, source.encode(), chosen)
        text = b"".join(len(part).to_bytes(2, "big") + part for part in parts)
        return hmac.digest(self._key, text, sha256)[:_MAC]


def retry_packet(asked: header.LongHeader, chosen: bytes, token: bytes) -> bytes:
    """The Retry that answers a first packet (RFC 9000 §17.2.5)."""
    packet = b"".join(
        (
            bytes((0xF0 | (os.urandom(1)[0] & 0x0F),)),
            header.VERSION_1.to_bytes(4, "big"),
            bytes((len(asked.source),)),
            asked.source,
            bytes((len(chosen),)),
            chosen,
            token,
        )
    )
    return packet + integrity_tag(packet, asked.destination)


def integrity_tag(packet: bytes, original: bytes) -> bytes:
    """The 16 bytes behind a Retry (RFC 9001 §5.8)."""
    pseudo = bytes((len(original),)) + original + packet
    return AESGCM(_KEY).encrypt(_NONCE, b"", pseudo)
