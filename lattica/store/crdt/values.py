"""Plain values as documents keep them: canonical MessagePack, the same bytes on every peer.

pycrdt's own numbers do not survive a replica (the int 1 comes back as 1.0, large ints lose
digits), so a value is stored as one opaque buffer and read back exactly.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lattica.errors import DocumentError

_encode = msgspec.msgpack.Encoder(order="sorted").encode


def _refuse(code: int, data: memoryview) -> Any:
    raise ValueError(f"extension type {code} ({len(data)} bytes) is no plain value")


_decode = msgspec.msgpack.Decoder(ext_hook=_refuse).decode
_ERRORS = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)


def encode_value(value: Any) -> bytes:
    """The canonical form of None, bool, int, float, str, bytes, aware datetime, list, dict.

    Raises:
        DocumentError: `value` holds something else.
    """
    try:
        return _encode(value)
    except _ERRORS as error:
        raise DocumentError(
            f"a document cannot hold this {type(value).__name__}: {error}; use plain values"
        ) from None


def decode_value(data: bytes | bytearray) -> Any:
    """What `encode_value` encoded.

    Raises:
        DocumentError: `data` is not the canonical form of a plain value.
    """
    try:
        value = _decode(data)
        # Equal bytes mean: no second way to write the same value.
        canonical = _encode(value) == data
    except _ERRORS as error:
        raise DocumentError(f"a value does not decode: {error}") from None
    if not canonical:
        raise DocumentError("a value is not in its canonical form")
    return value


def is_canonical(data: bytes) -> bool:
    """Whether `decode_value` decodes it."""
    try:
        return _encode(_decode(data)) == data
    except _ERRORS:
        return False
