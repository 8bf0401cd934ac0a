"""What a pycrdt update says, read before pycrdt sees it.

The format is Yjs' update encoding, version 1 (yjs/src/utils/encoding.js and the readers in
yrs/src/update.rs). Only what Lattica's own transactions write is let through: one author's
entries of root maps and arrays whose values are buffers, and of root texts, and deletions.
So pycrdt is never handed bytes that could confuse it, and what an update depends on is known
before it is applied. Whether it fits what is there already, `ledger` says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import msgspec

from lattica.errors import DocumentError
from lattica.store.crdt.kinds import MAX_NAME, Id, Place, place_of
from lattica.store.crdt.values import decode_value

MAX_PARTS = 16_384  # entries, and deleted ranges, in one update
MAX_CLOCK = 2**53
MAX_ROOT = MAX_NAME + 8  # bytes of a root's name: its kind, and the name

COLLECTED, DELETED, STRING, ANY = 0, 1, 4, 8  # Yjs' numbers of kinds of content
_CONTENT = 0x1F
_HAS_KEY, _HAS_RIGHT, _HAS_LEFT = 0x20, 0x40, 0x80
_BUFFER = 116  # lib0's tag of a byte buffer


class Entry(NamedTuple):
    """What an author adds in one piece: a run of units with rising clocks."""

    start: int  # clock of the first unit
    length: int  # units
    place: Place | None  # None: where what it follows or precedes stands
    left: Id | None  # the unit that it was put after, or that it replaces
    right: Id | None  # the unit that it was put before
    has_key: bool
    content: int  # DELETED, STRING or ANY
    value: bytes = b""  # of ANY with one value


class Deleted(NamedTuple):
    """Units that an update deletes."""

    client: int
    start: int
    stop: int


class UpdateFacts(msgspec.Struct, frozen=True, gc=False):
    """What an update writes and what it rests on."""

    client: int | None  # whose entries it adds; None: it only deletes
    start: int  # clock of its first entry
    end: int  # clock after its last one
    needs: dict[int, int]  # client -> clock up to which its entries must be there
    entries: tuple[Entry, ...] = ()
    deletes: tuple[Deleted, ...] = ()
    halves: tuple[int, ...] = ()  # clocks of second halves of surrogate pairs


def read_update(data: bytes) -> UpdateFacts:
    """The facts of an update.

    Raises:
        DocumentError: malformed, or it holds something that Lattica does not write.
    """
    try:
        return _Reader(data).update()
    except IndexError:
        raise DocumentError("the update is cut") from None


def live_units(state: bytes) -> Iterator[Id]:
    """The first unit of each entry of a pycrdt document's whole state that is not deleted."""
    reader = _Reader(state)
    for _ in range(reader.number()):
        count, client, clock = reader.number(), reader.number(), reader.number()
        for _ in range(count):
            if reader.data[reader.at] == COLLECTED:
                reader.at += 1
                clock += reader.number()
                continue
            entry = reader.entry(clock)
            clock += entry.length
            if entry.content != DELETED:
                yield client, entry.start


def collect(data: bytes, starts: Collection[int]) -> bytes:
    """The same update with the entries at these clocks collected as garbage."""
    reader = _Reader(data)
    parts = []
    reader.number()
    count = reader.number()
    reader.number()
    clock = reader.number()
    head = reader.at
    for _ in range(count):
        before = reader.at
        entry = reader.entry(clock)
        gone = clock in starts
        parts.append(b"\x00" + encode_number(entry.length) if gone else data[before : reader.at])
        clock += entry.length
    return data[:head] + b"".join(parts) + data[reader.at :]


def collected(client: int, start: int, length: int) -> bytes:
    """An update that adds nothing but entries collected as garbage."""
    numbers = (encode_number(number) for number in (client, start))
    return b"\x01\x01" + b"".join(numbers) + b"\x00" + encode_number(length) + b"\x00"


def encode_number(value: int) -> bytes:
    """lib0's form of an unsigned number."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


class _Reader:
    """One pass over an update. Reading past the end is an IndexError."""

    __slots__ = ("at", "client", "data", "end", "halves", "needs", "parts", "raw", "start")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.parts = 0
        self.client: int | None = None
        self.raw = b""  # the client's number as it is encoded
        self.start = 0
        self.end = 0
        self.needs: dict[int, int] = {}
        self.halves: list[int] = []

    def update(self) -> UpdateFacts:
        clients = self.number()
        if clients > 1:
            raise DocumentError(f"the update adds entries of {clients} clients")
        entries = self._entries() if clients else ()
        deletes = self._deletes()
        if self.at != len(self.data):
            raise DocumentError("bytes follow the end of the update")
        return UpdateFacts(
            self.client,
            self.start,
            self.end,
            self.needs,
            entries,
            deletes,
            tuple(self.halves),
        )

    def _entries(self) -> tuple[Entry, ...]:
        count = self.count()
        if not count:
            raise DocumentError("the update names a client and adds nothing")
        before = self.at
        client = self.client = self.number()
        self.raw = self.data[before : self.at]
        self.start = self.end = self.number()
        entries = []
        for _ in range(count):
            entry = self.entry(self.end)
            for origin in (entry.left, entry.right):
                if origin is None:
                    continue
                if origin[0] != client:
                    self._need(origin[0], origin[1] + 1)
                elif origin[1] >= self.end:
                    raise DocumentError("an entry stands beside one that comes after it")
            self.end += entry.length
            entries.append(entry)
        if self.end > MAX_CLOCK:
            raise DocumentError("a number of the update is too large")
        return tuple(entries)

    def entry(self, clock: int) -> Entry:
        """The entry that starts at `clock`."""
        info = self.data[self.at]
        self.at += 1
        left = right = place = None
        has_key = bool(info & _HAS_KEY)
        if info & _HAS_LEFT:
            left = (self._client(), self.number())
        if info & _HAS_RIGHT:
            right = (self._client(), self.number())
        if left is None and right is None:
            if self.number() != 1:
                raise DocumentError("an entry is not at the document's root")
            root = self._text(MAX_ROOT)
            place = place_of(root, self._text(MAX_NAME) if has_key else None)
        content = info & _CONTENT
        value = b""
        if content == ANY:
            length = self.number()
            for _ in range(length):
                value = self._value()
        elif content == STRING:
            length = self._string(clock)
        elif content == DELETED:
            length = self.number()
        else:
            raise DocumentError(f"an entry has content of the kind {content}")
        if not length:
            raise DocumentError("an empty entry")
        return Entry(clock, length, place, left, right, has_key, content, value)

    def _value(self) -> bytes:
        if self.data[self.at] != _BUFFER:
            raise DocumentError("a value is not a buffer")
        self.at += 1
        value = self._take(self.number())
        decode_value(value)
        return value

    def _string(self, clock: int) -> int:
        """Skip a piece of text; its length in UTF-16 units, which Yjs counts in."""
        raw = self._take(self.number())
        if raw.isascii():
            return len(raw)
        text = _decode(raw)
        units = clock
        for character in text:
            units += 1
            if character > "\uffff":
                self.halves.append(units)
                units += 1
        return units - clock

    def _deletes(self) -> tuple[Deleted, ...]:
        found = []
        seen = set()
        for _ in range(self.count()):
            client = self._client()
            if client in seen:
                raise DocumentError("the update deletes a client's entries twice")
            seen.add(client)
            stop = -1
            for _ in range(self.count()):
                start = self.number()
                if start < stop:
                    # Each unit at most once: else a short update could take long to judge.
                    raise DocumentError("the deletions are out of order")
                stop = start + self.number()
                if stop == start:
                    raise DocumentError("an empty deletion")
                found.append(Deleted(client, start, stop))
            if client != self.client:
                self._need(client, stop)
            elif stop > self.end:
                raise DocumentError("the update deletes what its author has not written")
        return tuple(found)

    def _need(self, client: int, clock: int) -> None:
        if self.needs.get(client, 0) < clock:
            self.needs[client] = clock

    def _client(self) -> int:
        # Mostly the author's own, whose eight bytes need not be put together again.
        if self.client is not None and self.data.startswith(self.raw, self.at):
            self.at += len(self.raw)
            return self.client
        return self.number()

    def number(self) -> int:
        data, at = self.data, self.at
        part = data[at]
        at += 1
        if part < 0x80:
            self.at = at
            return part
        value, shift = part & 0x7F, 7
        while True:
            part = data[at]
            at += 1
            value |= (part & 0x7F) << shift
            if part < 0x80:
                break
            shift += 7
            if shift > 56:
                raise DocumentError("a number of the update is too large")
        if value > MAX_CLOCK:
            raise DocumentError("a number of the update is too large")
        self.at = at
        return value

    def count(self) -> int:
        value = self.number()
        self.parts += value
        if self.parts > MAX_PARTS:
            raise DocumentError(f"an update has at most {MAX_PARTS} parts")
        return value

    def _take(self, size: int) -> bytes:
        stop = self.at + size
        if stop > len(self.data):
            raise IndexError
        data = self.data[self.at : stop]
        self.at = stop
        return data

    def _text(self, limit: int) -> str:
        size = self.number()
        if size > limit:
            raise DocumentError(f"a name of {size} bytes is longer than {MAX_NAME}")
        return _decode(self._take(size))


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise DocumentError("text of the update is not UTF-8") from None
