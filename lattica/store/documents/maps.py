"""A map of a document, as its users see it."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from lattica.identity.keys import PeerId
from lattica.store.crdt.kinds import MAP, Place, require_name
from lattica.store.crdt.values import decode_value, encode_value
from lattica.store.documents.arrays import DocumentArray
from lattica.store.documents.counters import DocumentCounter
from lattica.store.documents.face import Owner
from lattica.store.documents.texts import DocumentText

if TYPE_CHECKING:
    import pycrdt


class Container:
    """A document, or a map in it: where maps, arrays, texts and counters are by their names.

    What is inside a map has a name of its own, `outer/inner`, and a life of its own: it is
    there for whoever first writes it, peers that do so at once write the same one, and what
    happens to the map's keys does not touch it.
    """

    def map(self, name: str) -> DocumentMap:
        """The map `name`; one that was never written is empty."""
        return DocumentMap(*self._inside(require_name(name)))

    def array(self, name: str) -> DocumentArray:
        """The array `name`; one that was never written is empty."""
        return DocumentArray(*self._inside(require_name(name)))

    def text(self, name: str) -> DocumentText:
        """The text `name`; one that was never written is empty."""
        return DocumentText(*self._inside(require_name(name)))

    def counter(self, name: str) -> DocumentCounter:
        """The counter `name`; one that was never written is 0."""
        return DocumentCounter(*self._inside(require_name(name)))

    def _inside(self, name: str) -> tuple[Owner, str]:
        """The document, and the whole name there of what is `name` here."""
        raise NotImplementedError


class DocumentMap(Container, MutableMapping[str, Any]):
    """A map of a document: str to None, bool, int, float, str, bytes, list, dict.

    What is read is a copy: write a changed value back to share it. Each write outside
    `Document.transaction` is an update of its own. Of concurrent writes to one key, all
    peers keep the same one.
    """

    def __init__(self, document: Owner, name: str) -> None:
        self._document = document
        self._name = name

    def _inside(self, name: str) -> tuple[Owner, str]:
        return self._document, require_name(f"{self._name}/{name}")

    def set(self, key: str, value: Any) -> None:
        """Write one entry.

        Raises:
            DocumentError: not a plain value, or too large.
            GrantError: this peer may not write.
        """
        self[key] = value

    def delete(self, key: str) -> None:
        """Remove one entry; one that is not there is no error."""
        self.pop(key, None)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Write several entries as one update; see `dict.update`."""
        with self._document.transaction():
            super().update(*args, **kwargs)

    def clear(self) -> None:
        """Remove all entries as one update."""
        with self._document.transaction():
            entries = self._entries
            for key in list(entries.keys()):
                del entries[key]

    def author(self, key: str) -> PeerId:
        """Who wrote what `key` now holds.

        Raises:
            KeyError: it holds nothing.
            DocumentError: a transaction is open.
        """
        return self._document.author_of(Place(MAP, self._name, key))

    def __getitem__(self, key: str) -> Any:
        return decode_value(self._entries[key])

    def __setitem__(self, key: str, value: Any) -> None:
        require_name(key)
        data = encode_value(value)
        with self._document.transaction():
            self._entries[key] = data

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        with self._document.transaction():
            del self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries.keys()))

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key in self._entries

    def items(self) -> ItemsView[str, Any]:
        """The entries, by key."""
        return {key: self[key] for key in self}.items()

    def __repr__(self) -> str:
        return f"DocumentMap({self._document.name}/{self._name}: {dict(self)})"

    @property
    def _entries(self) -> pycrdt.Map[Any]:
        return self._document.state.map(self._name)
