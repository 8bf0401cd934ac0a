"""Where each unit of a document stands, and whether an update fits what is there.

An update of Yjs names neighbours instead of places, so only who knows where those stand can
tell a text's entry from an array's. What is decided here follows from accepted updates
alone, in which the neighbours must be; so every peer decides the same.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from lattica.errors import DocumentError
from lattica.store.crdt.kinds import COUNT, GONE, KEYED, MAP, TEXT, Id, Place
from lattica.store.crdt.order import Order, Piece
from lattica.store.crdt.update import ANY, STRING, Entry, UpdateFacts

Stated = Sequence[tuple[str, str, str]]  # kind, name and key of entries
MAX_COUNT = 2**63
MAX_LOOKUPS = 256  # in the order of a sequence, for one update; each may take a millisecond


class Run(NamedTuple):
    """Units of one client with rising clocks, each after the one before."""

    place: Place
    left: Id | None = None  # in sequences: what the first was put after,
    right: Id | None = None  # and what all were put before


class Reading(NamedTuple):
    """What an update adds to the ledger."""

    starts: list[int]
    runs: list[Run]
    end: int
    gone: list[int]  # clocks of entries to be collected, for they rest on what was
    replacing: list[Place]  # where the entries are that only name what they replace


_GONE = Run(Place(GONE, ""))


def states(entry: Entry) -> bool:
    """Whether an author is to say where the entry is, for it only names what it replaces."""
    return entry.place is None and entry.has_key


def counter_key(client: int) -> str:
    """The key under which an author counts."""
    return f"{client:014x}"


class Author(msgspec.Struct, array_like=True):
    """One client's units."""

    starts: list[int] = []  # clocks, rising: `runs[i]` goes from `starts[i]` to the next
    runs: list[Run] = []
    end: int = 0
    halves: set[int] = set()  # clocks of second halves of surrogate pairs


class Ledger:
    """The places of all accepted units."""

    def __init__(self) -> None:
        self._authors: dict[int, Author] = {}
        self._runs: dict[Place, Run] = {}  # one object for all entries of a key
        self._order: Order | None = None  # made when it is first needed
        self._lookups = 0  # in it, for the update that is read

    def replace(self, client: int, start: int, over: int, clock: int, stated: Stated) -> bool:
        """Do what `read` and `take` would, for one entry of a map in the place of another.

        False: nothing was done, for it is something else. Most updates are this.
        """
        author, other = self._authors.get(client), self._authors.get(over)
        if author is None or other is None or self._order is not None or clock >= other.end:
            return False
        run = other.runs[bisect_right(other.starts, clock) - 1]
        if run.place.kind != MAP or (stated and stated != (run.place,)):
            return False
        if author.runs[-1] is not run:
            author.starts.append(start)
            author.runs.append(run)
        author.end = start + 1
        return True

    def read(self, facts: UpdateFacts, stated: Stated = ()) -> Reading:
        """What the update adds; what it rests on must be in.

        `stated`: what its author says of where the entries are that do not say it themselves.

        Raises:
            DocumentError: it does not fit.
        """
        reading = Reading([], [], facts.end, [], [])
        self._lookups = 0
        halves = frozenset(facts.halves)
        for entry in facts.entries:
            run = self._place(facts, reading, halves, entry)
            if run is _GONE:
                reading.gone.append(entry.start)
            if states(entry):
                reading.replacing.append(run.place)
            if not self._extends(facts, reading, entry, run):
                reading.starts.append(entry.start)
                reading.runs.append(run)
        if stated:
            _require_stated(stated, reading.replacing)
        for deleted in facts.deletes:
            self._require_whole(facts, halves, (deleted.client, deleted.start))
            self._require_whole(facts, halves, (deleted.client, deleted.stop))
            if deleted.client != facts.client:
                for place in self.places(deleted.client, deleted.start, deleted.stop):
                    if place.kind == COUNT:
                        raise DocumentError("an author takes back what another has counted")
        return reading

    def take(self, facts: UpdateFacts, reading: Reading) -> None:
        """Add what `read` has found, when the update is accepted."""
        if facts.client is None:
            return
        author = self._authors.get(facts.client)
        if author is None:
            author = self._authors[facts.client] = Author()
        author.starts += reading.starts
        author.runs += reading.runs
        author.end = facts.end
        author.halves.update(facts.halves)
        if self._order is not None:
            self._order.add({facts.client: _pieces(facts.client, author, facts.start)})

    def collect(self, client: int, start: int, stop: int) -> None:
        """These units of the client, the next ones, were collected as garbage."""
        author = self._authors.get(client)
        if author is None:
            author = self._authors[client] = Author()
        author.starts.append(start)
        author.runs.append(_GONE)
        author.end = stop
        if self._order is not None:
            self._order.add({client: [Piece(start, stop, _GONE.place, None, None)]})

    def places(self, client: int, start: int, stop: int) -> Iterator[Place]:
        """Where these units stand; a place may come more than once."""
        author = self._authors.get(client)
        if author is None:
            return
        for index in range(bisect_right(author.starts, start) - 1, len(author.starts)):
            if author.starts[index] >= stop:
                return
            yield author.runs[index].place

    def place_at(self, client: int, clock: int) -> Place:
        """Where an accepted unit stands."""
        author = self._authors[client]
        return author.runs[bisect_right(author.starts, clock) - 1].place

    def touched(self, facts: UpdateFacts) -> frozenset[Place]:
        """The places that an accepted update has changed."""
        found: set[Place] = set()
        if facts.client is not None:
            found.update(self.places(facts.client, facts.start, facts.end))
        for deleted in facts.deletes:
            found.update(self.places(deleted.client, deleted.start, deleted.stop))
        return frozenset(place for place in found if place.kind != GONE)

    def encode(self) -> bytes:
        """All of it, for `decode`."""
        places = {place: index for index, place in enumerate(dict.fromkeys(self._all_places()))}
        authors = {
            client: (
                author.starts,
                [
                    (places[run.place], run.left, run.right)
                    if run.left or run.right
                    else places[run.place]
                    for run in author.runs
                ],
                author.end,
                sorted(author.halves),
            )
            for client, author in self._authors.items()
        }
        return msgspec.msgpack.encode((list(places), authors))

    @classmethod
    def decode(cls, data: bytes) -> Ledger:
        """What `encode` made.

        Raises:
            DocumentError: it was not made by `encode`.
        """
        ledger = cls()
        try:
            places, authors = msgspec.msgpack.decode(data, type=_Encoded)
            shared = [Run(place) for place in places]
            for client, (starts, runs, end, halves) in authors.items():
                ledger._authors[client] = Author(
                    starts,
                    [
                        shared[run] if isinstance(run, int) else Run(places[run[0]], run[1], run[2])
                        for run in runs
                    ],
                    end,
                    set(halves),
                )
        except (msgspec.MsgspecError, IndexError) as error:
            raise DocumentError(f"a snapshot is damaged: {error}") from None
        ledger._runs = dict(zip(places, shared, strict=True))
        return ledger

    # ------------------------------------------------------------------------- internals

    def _place(
        self, facts: UpdateFacts, reading: Reading, halves: frozenset[int], entry: Entry
    ) -> Run:
        """The run that an entry is, if it may be where it is."""
        left = right = None
        place = entry.place
        if place is None:
            left = self._find(facts, reading, entry.left)
            right = self._find(facts, reading, entry.right)
            if _GONE in (left, right):
                return _GONE
            neighbour = left or right
            assert neighbour is not None
            place = neighbour.place
            if left is not None and right is not None and left.place != right.place:
                raise DocumentError("an entry stands between two places")
            if entry.has_key is not (place.key is not None):
                raise DocumentError("an entry has the form of another kind")
        if entry.content == (ANY if place.kind == TEXT else STRING):
            raise DocumentError(f"an entry of the {place.kind} {place.name!r:.80} is of no such")
        if place.kind not in KEYED:
            self._require_neighbours(facts, reading, halves, entry, left, right)
            return Run(place, entry.left, entry.right)
        if entry.right is not None or (entry.content == ANY and entry.length != 1):
            raise DocumentError(f"an entry of the {place.kind} {place.name!r:.80} is not one value")
        if place.kind == COUNT:
            _require_count(facts, place, entry)
        run = self._runs.get(place)
        if run is None:
            run = self._runs[place] = Run(place)
        return run

    def _find(self, facts: UpdateFacts, reading: Reading, unit: Id | None) -> Run | None:
        if unit is None:
            return None
        client, clock = unit
        if client == facts.client and clock >= facts.start:
            index = bisect_right(reading.starts, clock) - 1
            if index >= 0:
                return reading.runs[index]
            clock = facts.start - 1  # it goes on with the run before
        author = self._authors.get(client)
        if author is None or clock >= author.end:
            raise DocumentError("an entry stands beside one that is not there")
        return author.runs[bisect_right(author.starts, clock) - 1]

    def _require_neighbours(
        self,
        facts: UpdateFacts,
        reading: Reading,
        halves: frozenset[int],
        entry: Entry,
        left: Run | None,
        right: Run | None,
    ) -> None:
        """Check that the neighbours can have been next to each other for some author.

        Otherwise Yjs puts the entry in different places on peers that got it earlier or later.
        They can if nothing that either rests on stands between them, which is to say
        `right.left <= left < right <= left.right` in the order of the sequence.
        """
        if entry.left is not None:
            self._require_whole(facts, halves, (entry.left[0], entry.left[1] + 1))
        if entry.right is not None:
            self._require_whole(facts, halves, entry.right)
        lower = None if right is None else self._left_of(facts, reading, entry.right, right)
        upper = None if left is None else left.right
        if entry.right is not None and lower == entry.left:
            return
        if entry.left is not None and upper == entry.right:
            return
        if entry.left is None and entry.right is None:
            return
        if entry.left is None or entry.right is None:
            raise DocumentError("an entry stands at an end that was none")
        for client, clock in (entry.left, entry.right):
            if client == facts.client and clock >= facts.start:
                raise DocumentError("an entry stands between two that were never neighbours")
        self._lookups += 1
        if self._lookups > MAX_LOOKUPS:
            raise DocumentError(
                f"more than {MAX_LOOKUPS} entries of one transaction stand between what others "
                "wrote at once; use several transactions"
            )
        if self._order is None:
            self._order = Order()
            self._order.add(
                {client: _pieces(client, author, 0) for client, author in self._authors.items()}
            )
        assert left is not None
        if not self._order.rises(left.place, (lower, entry.left), (entry.right, upper)):
            raise DocumentError("an entry stands between two that were never neighbours")

    def _left_of(
        self, facts: UpdateFacts, reading: Reading, unit: Id | None, run: Run
    ) -> Id | None:
        """What a unit was put after; `run` is the one that it is in."""
        assert unit is not None
        client, clock = unit
        starts = self._authors[client].starts if client in self._authors else []
        if client == facts.client and clock >= facts.start and reading.starts:
            starts = reading.starts if clock >= reading.starts[0] else starts
        start = starts[bisect_right(starts, clock) - 1]
        return run.left if start == clock else (client, clock - 1)

    def _require_whole(self, facts: UpdateFacts, halves: frozenset[int], unit: Id) -> None:
        """Check that the text can be cut before this unit."""
        client, clock = unit
        author = self._authors.get(client)
        if (client == facts.client and clock in halves) or (author and clock in author.halves):
            raise DocumentError("the update splits a character in two")

    def _extends(self, facts: UpdateFacts, reading: Reading, entry: Entry, run: Run) -> bool:
        """Whether the entry only goes on with the run before it."""
        if entry.left != (facts.client, entry.start - 1) and run.place.kind not in KEYED:
            return False
        before: Run | None = None
        if reading.runs:
            before = reading.runs[-1]
        elif facts.client is not None and (author := self._authors.get(facts.client)):
            before = author.runs[-1]
        return before is not None and before.place == run.place and before.right == run.right

    def _all_places(self) -> Iterator[Place]:
        for author in self._authors.values():
            for run in author.runs:
                yield run.place


def _pieces(client: int, author: Author, start: int) -> list[Piece]:
    """A client's runs from `start` on."""
    first = max(bisect_right(author.starts, start) - 1, 0)
    starts = [start, *author.starts[first + 1 :], author.end]
    found = []
    for (begin, stop), run in zip(itertools.pairwise(starts), author.runs[first:], strict=True):
        if begin not in (author.starts[first], 0) and begin == start:
            run = Run(run.place, (client, begin - 1), run.right)
        found.append(Piece(begin, stop, run.place, run.left, run.right))
    return found


def _require_stated(stated: Stated, places: Sequence[Place]) -> None:
    """Check what an author says of where it writes, as far as that is known."""
    if len(stated) != len(places) or any(
        said != place for said, place in zip(stated, places, strict=True) if place != _GONE.place
    ):
        raise DocumentError("an author says that it writes elsewhere than it does")


def _require_count(facts: UpdateFacts, place: Place, entry: Entry) -> None:
    """Check that authors count for themselves alone, and count."""
    if facts.client is None or place.key != counter_key(facts.client):
        raise DocumentError("an author counts in another's name")
    if entry.content == ANY:
        decode_count(entry.value)


def decode_count(data: bytes) -> tuple[int, int]:
    """What an author has added to a counter, and taken off.

    Raises:
        DocumentError: it is not that.
    """
    try:
        plus, minus = msgspec.msgpack.decode(data, type=tuple[int, int])
    except msgspec.MsgspecError:
        plus = minus = -1
    if not (0 <= plus < MAX_COUNT and 0 <= minus < MAX_COUNT):
        raise DocumentError("a counter's entry is not two counts")
    return plus, minus


class _Encoded(NamedTuple):
    places: list[Place]
    authors: dict[
        int,
        tuple[list[int], list[int | tuple[int, Id | None, Id | None]], int, list[int]],
    ]
