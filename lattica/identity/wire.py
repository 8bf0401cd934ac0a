"""One MessagePack dialect for everything that crosses a network or lies on disk.

`PeerId` travels as its 32 raw bytes. Decoding is strict: unknown types, wrong
lengths and trailing bytes are errors.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from lattica.identity.keys import PeerId

T = TypeVar("T")


def enc_hook(value: Any) -> Any:
    """Encode Lattica's own types for msgspec."""
    if isinstance(value, PeerId):
        return value.raw
    raise NotImplementedError(f"{type(value).__qualname__} has no wire form")


def dec_hook(kind: type[Any], value: Any) -> Any:
    """Decode Lattica's own types for msgspec."""
    if kind is PeerId:
        if not isinstance(value, bytes):
            raise ValueError("a PeerId is 32 bytes")
        return PeerId(value)
    raise NotImplementedError(f"{kind.__qualname__} has no wire form")


_encoder = msgspec.msgpack.Encoder(enc_hook=enc_hook)


def encode(value: Any) -> bytes:
    """MessagePack bytes of `value`."""
    return _encoder.encode(value)


def decode(data: bytes | bytearray | memoryview, kind: type[T]) -> T:
    """Decode `data` as a `kind`.

    Raises:
        msgspec.DecodeError, msgspec.ValidationError: `data` is not exactly one `kind`.
            Callers map them to their layer's own error.
    """
    return msgspec.msgpack.decode(data, type=kind, dec_hook=dec_hook)
