"""A counter of a document, as its users see it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from lattica.errors import DocumentError
from lattica.store.crdt.ledger import MAX_COUNT, counter_key, decode_count
from lattica.store.crdt.values import encode_value
from lattica.store.documents.face import Owner


class DocumentCounter:
    """A number to which all peers add, and which loses no addition.

    Each author has an entry of its own with what it has added and taken off; the number is
    the sum of all. Nobody can write another's.
    """

    def __init__(self, document: Owner, name: str) -> None:
        self._document = document
        self._name = name

    def add(self, amount: int = 1) -> None:
        """Add to it; a negative amount takes off.

        Raises:
            DocumentError: no integer, or this peer has added 2**63 in all.
            GrantError: this peer may not write.
        """
        if not isinstance(amount, int):
            raise DocumentError(f"a counter counts in integers, not in {type(amount).__name__}")
        with self._document.transaction():
            state = self._document.state
            entries, key = state.counts(self._name), counter_key(state.client)
            plus, minus = decode_count(bytes(entries[key])) if key in entries else (0, 0)
            plus, minus = plus + max(amount, 0), minus + max(-amount, 0)
            if max(plus, minus) >= MAX_COUNT:
                raise DocumentError("one author adds less than 2**63 to a counter in all")
            entries[key] = encode_value([plus, minus])

    def __iadd__(self, amount: int) -> Self:
        self.add(amount)
        return self

    def __isub__(self, amount: int) -> Self:
        self.add(-amount)
        return self

    @property
    def value(self) -> int:
        """The number."""
        return total(self._document.state.counts(self._name).values())

    def __int__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return f"DocumentCounter({self._document.name}/{self._name}: {self.value})"


def total(entries: Iterable[Any]) -> int:
    """The number that a counter's entries make."""
    counts = [decode_count(bytes(data)) for data in entries]
    return sum(plus - minus for plus, minus in counts)
