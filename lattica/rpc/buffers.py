"""Raw bytes beside a message: the out-of-band part of a call, a result or an item."""

from __future__ import annotations

from typing import Any


class Buffer:
    """Bytes that travel beside a MessagePack message instead of inside it.

    May stand anywhere in a method's arguments, result or items. Small ones share the
    control message's packet; larger ones take a QUIC stream of their own.
    """

    __slots__ = ("data",)

    data: memoryview

    def __init__(self, data: Any) -> None:
        """`data` is anything with a contiguous buffer: bytes, bytearray, numpy, torch's numpy."""
        view = memoryview(data)
        if type(data) is bytes:
            self.data = view
            return
        self.data = view if view.format == "B" and view.ndim == 1 else view.cast("B")

    def __len__(self) -> int:
        return self.data.nbytes

    def __bytes__(self) -> bytes:
        return bytes(self.data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Buffer) and self.data == other.data

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[Buffer], tuple[bytes]]:
        """To a process of ours: a view cannot be pickled."""
        return Buffer, (bytes(self.data),)

    def __repr__(self) -> str:
        return f"Buffer({self.data.nbytes} bytes)"
