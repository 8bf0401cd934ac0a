"""An array of a document, as its users see it."""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence
from typing import TYPE_CHECKING, Any, overload

from lattica.store.crdt.values import decode_value, encode_value
from lattica.store.documents.face import Owner

if TYPE_CHECKING:
    import pycrdt

_PART = 64  # items that are put in as neighbours


class DocumentArray(MutableSequence[Any]):
    """A list of plain values (see `DocumentMap`) into which all peers may insert.

    Concurrent insertions all stay, those of one author in one place together. An item that
    two peers set at once is there twice: put what changes into a map instead.
    """

    def __init__(self, document: Owner, name: str) -> None:
        self._document = document
        self._name = name

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            # All at once: pycrdt walks from the start to each single item.
            return [decode_value(bytes(data)) for data in (self._items.to_py() or [])[index]]
        return decode_value(bytes(self._items[self._at(index)]))

    def __setitem__(self, index: Any, value: Any) -> None:
        """Put other items in the place of one, or of a slice without gaps."""
        start, stop, values = self._part(index, value)
        encoded = [encode_value(each) for each in values]
        with self._document.transaction():
            self._replace(start, stop, encoded)

    def __delitem__(self, index: int | slice) -> None:
        start, stop, _ = self._part(index, ())
        with self._document.transaction():
            self._replace(start, stop, [])

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Any:
        return iter(self[:])

    def __eq__(self, other: object) -> bool:
        return self[:] == (other[:] if isinstance(other, DocumentArray) else other)

    __hash__ = None  # type: ignore[assignment]

    def insert(self, index: int, value: Any) -> None:
        """Put an item before that at `index`; at the end if there is none.

        Raises:
            DocumentError: not a plain value, or too large.
            GrantError: this peer may not write.
        """
        self[index:index] = [value]

    def extend(self, values: Iterable[Any]) -> None:
        """Put items at the end as one update."""
        end = len(self)
        self[end:end] = list(values)

    def clear(self) -> None:
        """Remove all items as one update."""
        del self[:]

    def __repr__(self) -> str:
        return f"DocumentArray({self._document.name}/{self._name}: {self[:]})"

    def _part(self, index: int | slice, value: Any) -> tuple[int, int, list[Any]]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError("a document's array is written in slices without gaps only")
            return start, max(start, stop), list(value)
        at = self._at(index)
        return at, at + 1, [value]

    def _at(self, index: int) -> int:
        length = len(self)
        if not -length <= index < length:
            raise IndexError(f"no item {index} in {length}")
        return index % length

    def _replace(self, start: int, stop: int, encoded: list[bytes]) -> None:
        items = self._items
        if stop > start:
            del items[start:stop]
        # pycrdt joins neighbours when a transaction ends, each time copying what it has joined.
        # Parts that are put in from the last to the first are no such neighbours.
        for first in range((len(encoded) - 1) // _PART * _PART, -1, -_PART):
            for offset, data in enumerate(encoded[first : first + _PART]):
                items.insert(start + offset, data)

    @property
    def _items(self) -> pycrdt.Array[Any]:
        return self._document.state.array(self._name)
