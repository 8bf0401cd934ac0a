"""A replicated document as its users see it: named maps of plain values."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import AsyncIterator, Callable, ItemsView, Iterator, Mapping, MutableMapping
from typing import Any

import anyio
import msgspec

from lattica.clock import Clock
from lattica.errors import DocumentError
from lattica.identity.keys import PeerId
from lattica.store.chain import Link
from lattica.store.replica import Replica
from lattica.store.update import MAX_NAME
from lattica.store.values import decode_value, encode_value


class Change(msgspec.Struct, frozen=True):
    """The document has changed; by whom, since the last one."""

    authors: frozenset[PeerId]


class Document:
    """One document. Reads and writes are plain calls on the event loop's thread.

    A write is visible here at once, is sent to peers when it is on disk, and reads the
    same everywhere in the end: of concurrent writes to one key, all peers keep the same.
    """

    def __init__(
        self,
        replica: Replica,
        clock: Clock,
        *,
        wrote: Callable[[Link], None],
        flush: Callable[[], Any],
        synced: Callable[[], Any],
    ) -> None:
        """Made by `Documents.open`."""
        self._replica = replica
        self._clock = clock
        self._wrote = wrote
        self._flush = flush
        self._synced = synced
        self._in_transaction = False
        self._watchers: weakref.WeakSet[_Watcher] = weakref.WeakSet()

    @property
    def name(self) -> str:
        """The document's name in its mesh."""
        return self._replica.name

    def map(self, name: str) -> DocumentMap:
        """The map `name`; one that was never written is empty."""
        _require_name(name)
        return DocumentMap(self, self._replica, name)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Group writes into one update that peers see whole. If it raises, nothing is changed.

        Raises:
            GrantError: this peer holds no `write:<document>` grant.
            DocumentError: what was written is too large.
        """
        if self._in_transaction:
            yield
            return
        self._in_transaction = True
        try:
            with self._replica.transaction(self._clock.time()) as written:
                yield
        finally:
            self._in_transaction = False
        for link in written:
            self._wrote(link)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The whole content: map, key, value. Empty maps are left out."""
        content = {name: dict(self.map(name)) for name in self._replica.state.names()}
        return {name: entries for name, entries in content.items() if entries}

    def digest(self) -> str:
        """A hash of the content; peers with equal digests read the same."""
        return self._replica.state.digest().hex()

    def heads(self) -> dict[PeerId, int]:
        """How many updates of each author are in."""
        return {head.author: head.sequence for head in self._replica.heads()}

    @property
    def counters(self) -> Mapping[str, int]:
        """Updates refused and dropped, by reason."""
        return self._replica.counters

    async def flush(self) -> None:
        """Wait until every write made so far is safe on disk.

        Raises:
            StoreError: the disk does not take it; it will be tried again.
        """
        await self._flush()

    async def synced(self) -> None:
        """Wait until this peer has what each linked peer with the document has now.

        A peer that does not answer is waited for no longer than a call's timeout.
        """
        await self._synced()

    async def changed(self) -> Change:
        """Wait for the next change, by this peer or another."""
        return await self._watcher().next()

    def watch(self) -> AsyncIterator[Change]:
        """Every change from now on; changes that come faster than they are read are merged."""
        return _changes(self._watcher())

    def notify(self, authors: frozenset[PeerId]) -> None:
        """Tell those who watch."""
        for watcher in self._watchers:
            watcher.add(authors)

    def _watcher(self) -> _Watcher:
        watcher = _Watcher()
        self._watchers.add(watcher)
        return watcher

    def __repr__(self) -> str:
        return f"Document({self.name}, {sum(self.heads().values())} updates)"


class DocumentMap(MutableMapping[str, Any]):
    """A map of a document: str to None, bool, int, float, str, bytes, list, dict.

    What is read is a copy: write a changed value back to share it. Each write outside
    `Document.transaction` is an update of its own.
    """

    def __init__(self, document: Document, replica: Replica, name: str) -> None:
        self._document = document
        self._replica = replica
        self._name = name

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

    def __getitem__(self, key: str) -> Any:
        return decode_value(self._entries[key])

    def __setitem__(self, key: str, value: Any) -> None:
        _require_name(key)
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
    def _entries(self) -> Any:
        return self._replica.state.map(self._name)


class _Watcher:
    """Authors of changes since the last look; bounded by the number of authors."""

    def __init__(self) -> None:
        self._authors: set[PeerId] = set()
        self._event = anyio.Event()

    def add(self, authors: frozenset[PeerId]) -> None:
        self._authors |= authors
        self._event.set()

    async def next(self) -> Change:
        await self._event.wait()
        self._event = anyio.Event()
        authors, self._authors = frozenset(self._authors), set()
        return Change(authors)


async def _changes(watcher: _Watcher) -> AsyncIterator[Change]:
    while True:
        yield await watcher.next()


def _require_name(name: str) -> None:
    if not isinstance(name, str) or not name.isprintable() or len(name.encode()) > MAX_NAME:
        raise DocumentError(f"{name!r:.80} is no name: printable text of at most {MAX_NAME} bytes")
