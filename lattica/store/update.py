"""What a pycrdt update says, read before pycrdt sees it.

The format is Yjs' update encoding, version 1 (yjs/src/utils/encoding.js and the readers in
yrs/src/update.rs). Only what Lattica's own transactions write is let through: one author's
entries of root maps whose values are buffers, and deletions. So pycrdt is never handed
bytes that could confuse it, and what an update depends on is known before it is applied.
"""

from __future__ import annotations

import msgspec

from lattica.errors import DocumentError
from lattica.store.values import decode_value

MAX_NAME = 1024  # bytes of a map's name or a key
MAX_PARTS = 16_384  # entries, and deleted ranges, in one update
MAX_CLOCK = 2**53

_DELETED, _ANY = 1, 8
_HAS_KEY, _HAS_RIGHT, _HAS_LEFT = 0x20, 0x40, 0x80
_BUFFER = 116  # lib0's tag of a byte buffer


class UpdateFacts(msgspec.Struct, frozen=True):
    """What an update writes and what it rests on."""

    client: int | None  # whose entries it adds; None: it only deletes
    start: int  # clock of its first entry
    end: int  # clock after its last one
    needs: dict[int, int]  # client -> clock up to which its entries must be there


def read_update(data: bytes) -> UpdateFacts:
    """The facts of an update.

    Raises:
        DocumentError: malformed, or it holds something that Lattica does not write.
    """
    reader = _Reader(data)
    clients = reader.number()
    if clients > 1:
        raise DocumentError(f"the update adds entries of {clients} clients")
    client, start, end = None, 0, 0
    needs: dict[int, int] = {}
    if clients:
        parts = reader.count()
        client, start = reader.number(), reader.number()
        end = start
        for _ in range(parts):
            length, left = _read_entry(reader)
            if left is not None:
                if left[0] != client:
                    needs[left[0]] = max(needs.get(left[0], 0), left[1] + 1)
                elif left[1] >= end:
                    raise DocumentError("an entry follows one that comes after it")
            end += length
        if end == start:
            raise DocumentError("the update names a client and adds nothing")
    _read_deletes(reader, client, end, needs)
    if not reader.at_end:
        raise DocumentError("bytes follow the end of the update")
    return UpdateFacts(client, start, end, needs)


def _read_entry(reader: _Reader) -> tuple[int, tuple[int, int] | None]:
    """The entry's length in clocks, and the id of the entry that it replaces."""
    info = reader.byte()
    left = None
    if info & _HAS_RIGHT:
        raise DocumentError("the update is not of maps alone")
    if info & _HAS_LEFT:
        left = reader.number(), reader.number()
    else:
        if reader.number() != 1 or not info & _HAS_KEY:
            raise DocumentError("an entry is not in a map at the document's root")
        reader.text()
        reader.text()
    kind = info & 0x1F
    if kind == _DELETED:
        length = reader.number()
        if not length:
            raise DocumentError("an empty entry")
        return length, left
    if kind != _ANY or reader.number() != 1 or reader.byte() != _BUFFER:
        raise DocumentError("an entry's value is not one buffer")
    decode_value(reader.take(reader.number()))
    return 1, left


def _read_deletes(reader: _Reader, client: int | None, end: int, needs: dict[int, int]) -> None:
    for _ in range(reader.count()):
        deleted = reader.number()
        for _ in range(reader.count()):
            upto = reader.number() + reader.number()
            if deleted != client:
                needs[deleted] = max(needs.get(deleted, 0), upto)
            elif upto > end:
                raise DocumentError("the update deletes what its author has not written")


class _Reader:
    """lib0's primitives, with bounds."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._parts = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)

    def byte(self) -> int:
        if self._at >= len(self._data):
            raise DocumentError("the update is cut")
        value = self._data[self._at]
        self._at += 1
        return value

    def number(self) -> int:
        value = shift = 0
        while True:
            part = self.byte()
            value |= (part & 0x7F) << shift
            if not part & 0x80:
                break
            shift += 7
            if shift > 56:
                raise DocumentError("a number of the update is too large")
        if value > MAX_CLOCK:
            raise DocumentError("a number of the update is too large")
        return value

    def count(self) -> int:
        value = self.number()
        self._parts += value
        if self._parts > MAX_PARTS:
            raise DocumentError(f"an update has at most {MAX_PARTS} parts")
        return value

    def take(self, size: int) -> bytes:
        stop = self._at + size
        if stop > len(self._data):
            raise DocumentError("the update is cut")
        data = self._data[self._at : stop]
        self._at = stop
        return data

    def text(self) -> None:
        size = self.number()
        if size > MAX_NAME:
            raise DocumentError(f"a name of {size} bytes is longer than {MAX_NAME}")
        try:
            self.take(size).decode()
        except UnicodeDecodeError:
            raise DocumentError("a name is not UTF-8") from None
