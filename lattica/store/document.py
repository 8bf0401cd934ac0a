"""A replicated document as its users see it: named maps, arrays, texts and counters."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import anyio
import msgspec

from lattica.clock import Clock
from lattica.identity.keys import PeerId
from lattica.store.arrays import DocumentArray
from lattica.store.chain import Link
from lattica.store.counters import DocumentCounter, total
from lattica.store.kinds import COUNT, MAP, TEXT, require_name
from lattica.store.maps import DocumentMap
from lattica.store.replica import Replica
from lattica.store.state import State
from lattica.store.texts import DocumentText
from lattica.store.values import decode_value


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
        require_name(name)
        return DocumentMap(self, name)

    def array(self, name: str) -> DocumentArray:
        """The array `name`; one that was never written is empty."""
        require_name(name)
        return DocumentArray(self, name)

    def text(self, name: str) -> DocumentText:
        """The text `name`; one that was never written is empty."""
        require_name(name)
        return DocumentText(self, name)

    def counter(self, name: str) -> DocumentCounter:
        """The counter `name`; one that was never written is 0."""
        require_name(name)
        return DocumentCounter(self, name)

    @property
    def state(self) -> State:
        """The content, for the faces of its parts."""
        return self._replica.state

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

    def to_dict(self) -> dict[str, Any]:
        """The whole content by name: maps as dicts, arrays as lists, texts, counters as numbers.

        What is empty is left out. Where two kinds share a name, it is `map:NAME` and so on.
        """
        held = {root: data for root in self.state.roots() if (data := self.state.raw(root))}
        names = Counter(root.name for root in held)
        return {
            root.name if names[root.name] == 1 else root.root: plain(root.kind, data)
            for root, data in held.items()
        }

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


def plain(kind: str, held: Any) -> Any:
    """A root's content as its users read it, from `State.raw`."""
    if kind == MAP:
        return {key: decode_value(held[key]) for key in sorted(held)}
    if kind == TEXT:
        return held
    return total(held.values()) if kind == COUNT else [decode_value(data) for data in held]
