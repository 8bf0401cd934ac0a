"""What every version of QUIC shows in the clear (RFC 8999), and version negotiation."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

import msgspec

LONG_HEADER = 0x80
CONNECTION_ID = 8  # bytes; ours are all of this length
MAX_CONNECTION_ID = 20  # RFC 9000 §17.2
MIN_INITIAL = 1200  # bytes; RFC 9000 §14.1
VERSION_1 = 0x00000001
_INITIAL_TYPE = 0x00  # RFC 9000 §17.2, bits 0x30 of a version 1 long header


class LongHeader(msgspec.Struct, frozen=True):
    """The invariant fields of a long header."""

    version: int
    destination: bytes
    source: bytes
    is_initial: bool  # only meaningful for version 1
    token: bytes = b""  # of an initial packet of version 1


def short_destination(datagram: bytes) -> bytes:
    """The destination connection id of a short header; shorter if cut."""
    return datagram[1 : 1 + CONNECTION_ID]


def parse_long(datagram: bytes) -> LongHeader | None:
    """Read a long header; None if it is cut or not valid."""
    if len(datagram) < 7:
        return None
    version = int.from_bytes(datagram[1:5], "big")
    end = 6 + datagram[5]
    if datagram[5] > MAX_CONNECTION_ID or len(datagram) <= end:
        return None
    stop = end + 1 + datagram[end]
    if datagram[end] > MAX_CONNECTION_ID or len(datagram) < stop:
        return None
    is_initial = datagram[0] & 0x30 == _INITIAL_TYPE
    token = _token(datagram, stop) if is_initial and version == VERSION_1 else b""
    if token is None:
        return None
    return LongHeader(version, datagram[6:end], datagram[end + 1 : stop], is_initial, token)


def _token(datagram: bytes, start: int) -> bytes | None:
    """The token of an initial packet (RFC 9000 §17.2.2); None if it is cut."""
    if start >= len(datagram):
        return None
    stop = start + (1 << (datagram[start] >> 6))  # a variable-length integer, §16
    if stop > len(datagram):
        return None
    mask = (1 << (8 * (stop - start) - 2)) - 1
    length = int.from_bytes(datagram[start:stop], "big") & mask
    token = datagram[stop : stop + length]
    return token if len(token) == length else None


def version_negotiation(header: LongHeader, versions: Sequence[int]) -> bytes:
    """The answer to an unknown version (RFC 8999 §6). Always shorter than `MIN_INITIAL`."""
    return b"".join(
        (
            # The first byte is free but for its top bit; the fixed bit helps RFC 9443's demux.
            bytes((LONG_HEADER | 0x40 | (os.urandom(1)[0] & 0x3F),)),
            bytes(4),
            bytes((len(header.source),)),
            header.source,
            bytes((len(header.destination),)),
            header.destination,
            struct.pack(f">{len(versions)}I", *versions),
        )
    )
