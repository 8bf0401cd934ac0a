"""What has changed in a document, and who has changed it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping

import anyio
import msgspec

from lattica.identity import wire
from lattica.identity.keys import PeerId
from lattica.store.chains.chain import Link
from lattica.store.chains.messages import Update
from lattica.store.crdt.kinds import COUNT, MAP, Place
from lattica.store.crdt.ledger import Ledger
from lattica.store.crdt.quick import read_body


class Change(msgspec.Struct, frozen=True):
    """The document has changed: by whom and where, since the last one."""

    by: Mapping[PeerId, frozenset[Place]]

    @property
    def authors(self) -> frozenset[PeerId]:
        """Those who have changed it."""
        return frozenset(self.by)

    @property
    def places(self) -> frozenset[Place]:
        """Keys of maps, and other roots, that were written or removed."""
        return frozenset().union(*self.by.values())

    def keys(self, name: str) -> frozenset[str]:
        """The keys of the map `name` that were written or removed."""
        return frozenset(
            place.key
            for place in self.places
            if place.kind == MAP and place.name == name and place.key is not None
        )


class Revision(msgspec.Struct, frozen=True):
    """One accepted update: a transaction of one author."""

    author: PeerId
    sequence: int  # 1, 2, ... per author
    written: float  # by the author's clock, seconds since the epoch
    places: frozenset[Place]  # keys of maps, and other roots, that it writes or removes


class Watcher:
    """Changes since the last look; bounded by the number of authors and of places."""

    def __init__(self) -> None:
        self._by: dict[PeerId, frozenset[Place]] = {}
        self._event = anyio.Event()

    def add(self, by: Mapping[PeerId, frozenset[Place]]) -> None:
        """There are these as well."""
        for author, places in by.items():
            self._by[author] = self._by.get(author, frozenset()) | places
        self._event.set()

    async def next(self) -> Change:
        """The changes since the last call, when there are any."""
        await self._event.wait()
        self._event = anyio.Event()
        by, self._by = self._by, {}
        return Change(by)


async def changes(watcher: Watcher) -> AsyncIterator[Change]:
    """One after the other."""
    while True:
        yield await watcher.next()


def revisions(ledger: Ledger, links: Iterable[Link]) -> Iterator[Revision]:
    """What accepted updates say."""
    for link in links:
        update = wire.decode(link.envelope.payload, Update)
        places = ledger.touched(read_body(update.body))
        yield Revision(
            link.envelope.author,
            link.sequence,
            update.written,
            # Under which key somebody counts is the counter's own business.
            frozenset(p._replace(key=None) if p.kind == COUNT else p for p in places),
        )
