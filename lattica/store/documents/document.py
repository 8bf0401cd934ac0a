"""A replicated document as its users see it: named maps, arrays, texts and counters."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from lattica.clock import Clock
from lattica.errors import DocumentError
from lattica.identity.keys import PeerId
from lattica.store.chains.chain import Link
from lattica.store.chains.changes import Change, Revision, Watcher, changes, revisions
from lattica.store.chains.replica import Replica
from lattica.store.crdt.kinds import COUNT, MAP, TEXT, Place
from lattica.store.crdt.state import State
from lattica.store.crdt.values import decode_value
from lattica.store.documents.awareness import Awareness
from lattica.store.documents.counters import total
from lattica.store.documents.face import Owner
from lattica.store.documents.maps import Container
from lattica.store.documents.views import DocumentView

T = TypeVar("T")


class Rule(Protocol):
    """Grants (`until` a time, in seconds since the Unix epoch) or revokes (None)."""

    async def __call__(self, subject: PeerId, *, until: float | None) -> None: ...


class Document(Container):
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
        rule: Rule,
        compact: Callable[[], Any],
        archived: Callable[[], AsyncIterator[Sequence[Link]]],
        awareness: Awareness | None = None,
    ) -> None:
        """Made by `Documents.open`."""
        self._replica = replica
        self._clock = clock
        self._wrote = wrote
        self._flush = flush
        self._synced = synced
        self._rule = rule
        self._compact = compact
        self._archived = archived
        self._awareness = awareness
        self._in_transaction = False
        self._watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()

    @property
    def name(self) -> str:
        """The document's name in its mesh."""
        return self._replica.name

    @property
    def awareness(self) -> Awareness:
        """Who else has the document open, and what they say of themselves.

        Raises:
            DocumentError: this copy has no peers.
        """
        if self._awareness is None:
            raise DocumentError(f"{self.name!r} is open here alone")
        return self._awareness

    def view(self, name: str, kind: type[T]) -> DocumentView[T]:
        """The map `name`, whose values are of `kind`: a msgspec struct or another type of it."""
        return DocumentView(self.map(name), kind)

    def _inside(self, name: str) -> tuple[Owner, str]:
        return self, name

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

    async def grant(self, peer: PeerId, *, until: float) -> None:
        """Let `peer` write this document until `until`, in seconds since the Unix epoch.

        Raises:
            GrantError: this peer is not the mesh's authority.
            RefusedError: the grant is not valid.
        """
        await self._rule(peer, until=until)

    async def revoke(self, peer: PeerId) -> None:
        """Let `peer` write no more: of its updates those that are here count, and no others.

        It is final: the peer can write again only under a new identity.

        Raises:
            GrantError: this peer is not the mesh's authority.
            RefusedError: the authority itself cannot be revoked.
        """
        await self._rule(peer, until=None)

    async def compact(self) -> None:
        """Write a snapshot now, so that opening need not read what was written until now.

        It also happens by itself, every `StoreConfig.snapshot_every` updates or more.

        Raises:
            StoreError: the disk does not take it.
        """
        await self._compact()

    async def changed(self) -> Change:
        """Wait for the next change, by this peer or another."""
        return await self._watcher().next()

    def watch(self) -> AsyncIterator[Change]:
        """Every change from now on; changes that come faster than they are read are merged."""
        return changes(self._watcher())

    def turn_to(self, replica: Replica) -> None:
        """Read from and write to another replica of the same document from now on."""
        self._replica = replica

    def notify_of(self, authors: Iterable[PeerId]) -> None:
        """Tell those who watch that what these authors wrote counts no more, or all anew."""
        for watcher in self._watchers:
            watcher.add(dict.fromkeys(authors, frozenset()))

    async def history(self) -> AsyncIterator[Revision]:
        """Every update that is in, in the order in which this peer took them in.

        Raises:
            StoreError: an older one cannot be read from disk.
        """
        async for links in self._archived():
            for revision in revisions(self.state.ledger, links):
                yield revision
        for revision in revisions(self.state.ledger, self._replica.recent()):
            yield revision

    def author_of(self, place: Place) -> PeerId:
        """Who wrote what a map's key now holds.

        Raises:
            KeyError: there is nothing.
        """
        return self._replica.author_of(self.state.writer_of(place))

    def notify(self, links: Sequence[Link]) -> None:
        """Tell those who watch that these were taken in."""
        if not self._watchers:
            return
        by: dict[PeerId, frozenset[Place]] = {}
        for each in revisions(self.state.ledger, links):
            by[each.author] = by.get(each.author, frozenset()) | each.places
        for watcher in self._watchers:
            watcher.add(by)

    def _watcher(self) -> Watcher:
        watcher = Watcher()
        self._watchers.add(watcher)
        return watcher

    def __repr__(self) -> str:
        return f"Document({self.name}, {sum(self.heads().values())} updates)"


def plain(kind: str, held: Any) -> Any:
    """A root's content as its users read it, from `State.raw`."""
    if kind == MAP:
        return {key: decode_value(held[key]) for key in sorted(held)}
    if kind == TEXT:
        return held
    return total(held.values()) if kind == COUNT else [decode_value(data) for data in held]
