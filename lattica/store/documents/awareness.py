"""Who has a document open and what they say of themselves: cursors, names, what they work on."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import anyio

from lattica.identity.keys import PeerId
from lattica.store.documents.presence import PresenceBook


class Awareness:
    """Presence in a document: for as long as peers are there, never on disk, no part of it.

    Each peer speaks for itself alone: what it says is signed. It is forgotten when the link
    to it goes, or when nothing was heard of it for `StoreConfig.presence_timeout`.
    """

    def __init__(self, book: PresenceBook, changed: Callable[[], None]) -> None:
        """Made by `Documents.open`; `changed`: what this peer says is to be sent."""
        self._book = book
        self._changed = changed
        self._watchers: weakref.WeakSet[_Watcher] = weakref.WeakSet()

    @property
    def own(self) -> Any:
        """What this peer says of itself; None if nothing."""
        return self._book.own

    def set(self, value: Any) -> None:
        """Say something else of this peer: a small plain value; None to say nothing.

        It reaches others within `StoreConfig.presence_pace`; of what changes faster they see
        the latest.

        Raises:
            DocumentError: not a plain value, or larger than `StoreConfig.max_presence`.
        """
        if self._book.set(value):
            self._changed()

    def others(self) -> Mapping[PeerId, Any]:
        """What the others that are there say of themselves."""
        return self._book.others()

    def watch(self) -> AsyncIterator[frozenset[PeerId]]:
        """Others who came, went or said something else, from now on."""
        watcher = _Watcher()
        self._watchers.add(watcher)
        return _news(watcher)

    def notify(self, peers: Iterable[PeerId]) -> None:
        """Tell those who watch."""
        found = frozenset(peers)
        for watcher in self._watchers if found else ():
            watcher.add(found)

    def __repr__(self) -> str:
        return f"Awareness({self.own!r}, {len(self.others())} others)"


class _Watcher:
    """Peers since the last look; bounded by their number."""

    def __init__(self) -> None:
        self._peers: frozenset[PeerId] = frozenset()
        self._event = anyio.Event()

    def add(self, peers: frozenset[PeerId]) -> None:
        self._peers |= peers
        self._event.set()

    async def next(self) -> frozenset[PeerId]:
        await self._event.wait()  # no deadline: the caller's own
        self._event = anyio.Event()
        peers, self._peers = self._peers, frozenset()
        return peers


async def _news(watcher: _Watcher) -> AsyncIterator[frozenset[PeerId]]:
    while True:
        yield await watcher.next()
