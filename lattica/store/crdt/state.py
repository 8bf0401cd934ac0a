"""The content of one document: a pycrdt Doc that only ever sees checked updates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import msgspec
import pycrdt
from blake3 import blake3

from lattica.errors import DocumentError
from lattica.identity.keys import PeerId
from lattica.store.crdt.kinds import ARRAY, COUNT, MAP, TEXT, Place
from lattica.store.crdt.ledger import Ledger, Reading, Stated
from lattica.store.crdt.quick import Replacing, read_body, read_replacing
from lattica.store.crdt.update import UpdateFacts, collect, collected, live_units

_CLIENT_BITS = 53  # Yjs keeps client ids in a double's integers
_TYPES: dict[str, Any] = {
    MAP: pycrdt.Map,
    ARRAY: pycrdt.Array,
    TEXT: pycrdt.Text,
    COUNT: pycrdt.Map,
}


def client_id(author: PeerId) -> int:
    """The pycrdt client id that an author must use; nobody chooses one."""
    digest = blake3(b"lattica-doc-client-v1\x00" + author.raw).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _CLIENT_BITS)


_KEPT = 128 * 1024  # bytes of updates, at least, that are kept beside a copy of what was before


class State:
    """Roots of four kinds, and how far each client's entries go."""

    def __init__(self, client: int) -> None:
        self.client = client
        self.clocks: dict[int, int] = {}
        self.closed: set[int] = set()  # clients of whom nothing more will count
        self.writing = False
        self.ledger = Ledger()
        self.version = 0  # rises with every change
        self._written: list[bytes] = []
        self._is_dirty = False  # a local transaction has changed the content, and is not kept yet
        # What makes the content anew without a local transaction: all up to some update, as one,
        # and the updates since.
        self._base = b""
        self._since: list[bytes] = []
        self._since_size = 0
        self._writers: tuple[int, dict[Place, int]] | None = None  # of a version
        self._admitted: list[bytes] = []
        self._doc = self._fresh()

    def map(self, name: str) -> pycrdt.Map[Any]:
        """The map `name`, as it is until the next `rebuild`."""
        return cast("pycrdt.Map[Any]", self._root(MAP, name))

    def array(self, name: str) -> pycrdt.Array[Any]:
        """The array `name`, as it is until the next `rebuild`."""
        return cast("pycrdt.Array[Any]", self._root(ARRAY, name))

    def text(self, name: str) -> pycrdt.Text:
        """The text `name`, as it is until the next `rebuild`. Its indices are UTF-8 bytes."""
        return cast("pycrdt.Text", self._root(TEXT, name))

    def counts(self, name: str) -> pycrdt.Map[Any]:
        """What each author has added to the counter `name` and taken off."""
        return cast("pycrdt.Map[Any]", self._root(COUNT, name))

    def roots(self) -> list[Place]:
        """All of them, also empty ones."""
        found = []
        for root in sorted(self._doc.keys()):
            kind, _, name = root.partition(":")
            found.append(Place(kind, name))
        return found

    def raw(self, root: Place) -> Any:
        """What a root holds, with values as they are encoded; empty if nothing."""
        if root.kind == TEXT:
            return str(self.text(root.name))
        if root.kind == ARRAY:
            return [bytes(data) for data in self.array(root.name).to_py() or ()]
        return {key: bytes(data) for key, data in self._root(*root[:2]).items()}

    def has(self, needs: Mapping[int, int]) -> bool:
        """Whether everything that an update rests on is here, or will never count."""
        clocks, closed = self.clocks, self.closed
        for client, clock in needs.items():
            if clocks.get(client, 0) < clock and client not in closed:
                return False
        return True

    def admit(self, update: bytes, facts: UpdateFacts, stated: Stated = ()) -> None:
        """Accept an update whose facts were checked; `settle` lets the content have it.

        `stated`: see `Ledger.read`.

        What it needs must be here. Where that was written by a closed client after its end, it
        is nowhere: the update finds entries there that were collected as garbage, and what it
        put beside or in place of them is collected as well, on all peers alike.

        Raises:
            DocumentError: it does not fit.
        """
        if self.closed:
            for client, clock in facts.needs.items():
                start = self.clocks.get(client, 0)
                if start < clock and client in self.closed:
                    self._collect(client, start, clock)
        reading = self.ledger.read(facts, stated)
        self.ledger.take(facts, reading)
        if reading.gone:
            update = collect(update, reading.gone)
        self._advance(facts)
        self._admitted.append(update)

    def replace(self, update: bytes, facts: Replacing, stated: Stated = ()) -> bool:
        """Do what `admit` would, if the update fits; False: nothing was done."""
        client, start, over, clock = facts
        clocks = self.clocks
        if (
            start != clocks.get(client)
            or clock >= clocks.get(over, 0)
            or not self.ledger.replace(client, start, over, clock, stated)
        ):
            return False
        self.version += 1
        clocks[client] = start + 1
        self._admitted.append(update)
        return True

    def settle(self) -> None:
        """Let the content have what was admitted, in one transaction.

        Raises:
            DocumentError: pycrdt refuses it; `rebuild` is due.
        """
        updates, self._admitted = self._admitted, []
        if updates:
            _apply(self._doc, updates)
            self._keep(updates)

    def apply(self, update: bytes, facts: UpdateFacts) -> None:
        """`admit` and `settle`."""
        self.admit(update, facts)
        self.settle()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Group writes; `take_written` then gives their update."""
        self.writing = True
        written = self._written = []
        doc = self._doc
        # Observed only meanwhile: the observer refers to the document, which refers to it, and
        # Python's collector does not see through pycrdt, so that neither would ever be freed.
        observing = doc.observe(lambda event: written.append(event.update))
        try:
            with doc.transaction():
                yield
        finally:
            doc.unobserve(observing)
            self.writing = False
            self._is_dirty = bool(written)

    def take_written(self) -> bytes | None:
        """The update of the last local transaction, if it changed anything."""
        body = self._written[0] if self._written else None
        self._written.clear()
        return body

    def judge(self, facts: UpdateFacts) -> Reading:
        """What the last local transaction adds.

        Raises:
            DocumentError: no peer would take it in; `abort` is due.
        """
        return self.ledger.read(facts)

    def wrote(self, body: bytes, facts: UpdateFacts, reading: Reading) -> None:
        """The last local transaction is kept."""
        self.ledger.take(facts, reading)
        self._advance(facts)
        self._is_dirty = False
        self._keep([body])

    def abort(self) -> None:
        """The last local transaction is not kept.

        pycrdt cannot take anything back, so the content is made anew, by pycrdt alone: what
        the ledger and the clocks know has not changed.
        """
        if self._is_dirty:
            self._doc, self._is_dirty = self._fresh(), False
            _apply(self._doc, [self._base, *self._since] if self._base else self._since)
            self.version += 1

    def rebuild(self, snapshot: bytes | None, updates: Iterable[bytes]) -> None:
        """Start again from a snapshot, or nothing, and the accepted updates after it.

        What does not count any more is gone then.

        Raises:
            DocumentError: the snapshot is damaged, or pycrdt refuses something.
        """
        if snapshot is None:
            self._doc, self.clocks, self.ledger = self._fresh(), {}, Ledger()
            self._base, self._since, self._since_size = b"", [], 0
        else:
            self.restore(snapshot)
        self._admitted = []
        for update in updates:
            found = read_replacing(update)
            if found is None or not self.replace(update, found):
                self.admit(update, read_body(update))
        self.settle()
        self.version += 1

    def snapshot(self) -> bytes:
        """All of it as one buffer, for `restore`. No transaction may be open."""
        return msgspec.msgpack.encode((self._doc.get_update(), self.clocks, self.ledger.encode()))

    def restore(self, snapshot: bytes) -> None:
        """Become what `snapshot` was made of. It must be our own: it is not judged.

        Raises:
            DocumentError: it is damaged.
        """
        try:
            update, clocks, ledger = msgspec.msgpack.decode(
                snapshot, type=tuple[bytes, dict[int, int], bytes]
            )
            self.ledger = Ledger.decode(ledger)
        except msgspec.MsgspecError as error:
            raise DocumentError(f"a snapshot is damaged: {error}") from None
        self.clocks = clocks
        self._doc = self._fresh()
        _apply(self._doc, [update])
        self._base, self._since, self._since_size = update, [], 0
        self.version += 1

    def writer_of(self, place: Place) -> int:
        """The client that wrote what a map's key now holds.

        Raises:
            KeyError: there is nothing.
            DocumentError: a transaction is open.
        """
        if self.writing:
            raise DocumentError("who wrote what is known when the transaction is over")
        if self._writers is None or self._writers[0] != self.version:
            found = {
                self.ledger.place_at(client, clock): client
                for client, clock in live_units(self.whole())
            }
            self._writers = (self.version, found)
        return self._writers[1][place]

    def whole(self) -> bytes:
        """pycrdt's update of all there is, for `live_units`. No transaction may be open."""
        return self._doc.get_update()

    def digest(self) -> bytes:
        """A hash of the content, the same on peers that read the same."""
        content = {}
        for root in self.roots():
            if held := self.raw(root):
                content[root.root] = held
        return blake3(msgspec.msgpack.encode(content, order="sorted")).digest()

    def _collect(self, client: int, start: int, stop: int) -> None:
        """Put entries collected as garbage where a client's do not count."""
        self.ledger.collect(client, start, stop)
        self.clocks[client] = stop
        self._admitted.append(collected(client, start, stop - start))

    def _root(self, kind: str, name: str) -> Any:
        return self._doc.get(f"{kind}:{name}", type=_TYPES[kind])

    def _advance(self, facts: UpdateFacts) -> None:
        self.version += 1
        if facts.client is not None:
            self.clocks[facts.client] = facts.end

    def _keep(self, updates: list[bytes]) -> None:
        """These are in the content now, and no transaction is open."""
        self._since += updates
        self._since_size += sum(map(len, updates))
        # Seldom enough to cost little an update, and often enough to bound what is kept.
        if self._since_size > max(_KEPT, 2 * len(self._base)):
            self._base, self._since, self._since_size = self.whole(), [], 0

    def _fresh(self) -> pycrdt.Doc[Any]:
        return pycrdt.Doc(client_id=self.client)


def _apply(doc: pycrdt.Doc[Any], updates: Iterable[bytes]) -> None:
    try:
        with doc.transaction():
            for update in updates:
                doc.apply_update(update)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic in Rust is a BaseException
        raise DocumentError(f"pycrdt refuses the update: {error}") from None
