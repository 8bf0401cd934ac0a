"""Maps of a document whose values are of one msgspec type."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any, Generic, TypeVar

import msgspec

from lattica.errors import DocumentError
from lattica.identity.keys import PeerId
from lattica.store.documents.maps import DocumentMap

T = TypeVar("T")

# What documents hold as it is, and JSON would not.
_PLAIN = (bytes,)


class DocumentView(MutableMapping[str, T], Generic[T]):
    """A map from str to a type: written by `msgspec.to_builtins`, read by `msgspec.convert`.

    Others may write what they like into the map, also with a later version of the type:
    to read a value of another shape is a DocumentError that names the key. `valid` leaves
    those out.
    """

    def __init__(self, entries: DocumentMap, kind: type[T]) -> None:
        self._entries = entries
        self._kind = kind

    def valid(self) -> dict[str, T]:
        """The entries that are of the type, by key."""
        found = {}
        for key in self:
            try:
                found[key] = self[key]
            except DocumentError:
                continue
        return found

    def invalid(self) -> dict[str, DocumentError]:
        """What is wrong with the others, by key."""
        found = {}
        for key in self:
            try:
                self[key]
            except DocumentError as error:
                found[key] = error
        return found

    def author(self, key: str) -> PeerId:
        """Who wrote what `key` now holds; see `DocumentMap.author`."""
        return self._entries.author(key)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Write several entries as one update; see `dict.update`."""
        values: dict[str, T] = dict(*args, **kwargs)
        self._entries.update({key: self._plain(key, value) for key, value in values.items()})

    def clear(self) -> None:
        """Remove all entries as one update."""
        self._entries.clear()

    def __getitem__(self, key: str) -> T:
        value = self._entries[key]
        try:
            return msgspec.convert(value, self._kind, builtin_types=_PLAIN)
        except msgspec.ValidationError as error:
            raise DocumentError(f"{key!r} is no {_name(self._kind)}: {error}") from None

    def __setitem__(self, key: str, value: T) -> None:
        self._entries[key] = self._plain(key, value)

    def __delitem__(self, key: str) -> None:
        del self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __repr__(self) -> str:
        return f"DocumentView({self._entries!r} of {_name(self._kind)})"

    def _plain(self, key: str, value: T) -> Any:
        """What is written: and it must be what reads back as the type, or nobody could."""
        try:
            plain = msgspec.to_builtins(value, builtin_types=_PLAIN, str_keys=True)
            msgspec.convert(plain, self._kind, builtin_types=_PLAIN)
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            raise DocumentError(f"{key!r}: this is no {_name(self._kind)}: {error}") from None
        return plain


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))
