"""The type of the items that flow one way: checks them, and decodes what arrived."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from lattica.errors import BadArgumentsError, RpcError
from lattica.rpc import codec
from lattica.rpc.buffers import Buffer

YIELD_EVERY = 32 * 1024  # bytes after which an end that never waits lets others run
ITEM_COST = 128  # bytes that an item counts for besides its own: it takes time however small
_EXACT = frozenset({bytes, str, int, float, bool, Buffer})  # their own type says all
_split = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


class Arrived(NamedTuple):
    """An item of its own, or a batch of small ones, as it came, and the bytes it took."""

    value: msgspec.Raw
    nbytes: int
    is_batch: bool = True
    views: Sequence[memoryview] = ()
    spilled: bool = False


class ItemType:
    """Items of one type that one side of a call sends to the other."""

    def __init__(self, kind: Any, title: str, error: type[RpcError]) -> None:
        """`title` names the stream in errors; `error` is the one of wrong items."""
        self.kind = kind
        self._title = title
        self._error = error
        is_struct = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
        self.exact = kind if is_struct or (isinstance(kind, type) and kind in _EXACT) else None
        self._one = codec.Decoder(kind)
        self._many = codec.Decoder(list[kind])

    def check(self, value: Any) -> Any:
        """`value` as an item.

        Raises:
            RpcError: the one for wrong items.
        """
        if type(value) is self.exact:
            return value
        try:
            return codec.check(value, self.kind)
        except BadArgumentsError as error:
            raise self.wrong(error) from None

    def decode(self, arrived: Arrived) -> tuple[list[Any], RpcError | None]:
        """The items in order, up to the first wrong one, and what is wrong with that."""
        try:
            if arrived.is_batch:
                return self._many.unpack(arrived.value), None
            return [self._one.unpack(arrived.value, arrived.views, arrived.spilled)], None
        except codec.DECODE_ERRORS as error:
            if not arrived.is_batch:
                return [], self.wrong(error)
        return self._some(arrived.value)

    def wrong(self, problem: Exception | str) -> RpcError:
        """The error of a wrong item."""
        return self._error(f"{self._title}: {problem}")

    def _some(self, batch: msgspec.Raw) -> tuple[list[Any], RpcError | None]:
        items: list[Any] = []
        try:
            items.extend(self._one.unpack(value) for value in _split(batch))
        except codec.DECODE_ERRORS as error:
            return items, self.wrong(error)
        return items, None
