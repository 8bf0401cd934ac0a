"""Which of two units of a sequence comes first, whether they are deleted or not.

pycrdt tells the place only of what is visible. So the sequences are kept once more, with
nothing deleted and every unit an empty value, in a pycrdt document that is asked instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pycrdt

from lattica.store.crdt.kinds import GONE, KEYED, Id, Place
from lattica.store.crdt.update import encode_number

_GC, _ANY, _HAS_RIGHT, _HAS_LEFT = 0, 8, 0x40, 0x80
_UNDEFINED = b"\x7f"  # lib0's tag of no value


class Piece(NamedTuple):
    """A client's units from `start` to `stop`, in one place, each after the one before."""

    start: int
    stop: int
    place: Place
    left: Id | None
    right: Id | None


class Order:
    """The order of all units of a document's sequences."""

    def __init__(self) -> None:
        self._doc: pycrdt.Doc[Any] = pycrdt.Doc()

    def add(self, pieces: Mapping[int, Sequence[Piece]]) -> None:
        """Take in pieces by their client, without a gap to those before."""
        update = bytearray(encode_number(len(pieces)))
        for client, added in pieces.items():
            update += (
                encode_number(len(added)) + encode_number(client) + encode_number(added[0].start)
            )
            for piece in added:
                update += _encode(piece)
        self._doc.apply_update(bytes(update) + b"\x00")

    def rises(self, place: Place, *pairs: tuple[Id | None, Id | None]) -> bool:
        """Whether the first is before the second, or is it, in both pairs, and those rise.

        None is before all in the first pair, and after all in the second.
        """
        self._doc.get(place.root, type=pycrdt.Array)
        (lower, left), (right, upper) = pairs
        with self._doc.transaction() as transaction:

            def at(unit: Id | None, default: float) -> float:
                if unit is None:
                    return default
                client, clock = unit
                found = {"item": {"client": client, "clock": clock}, "assoc": 0}
                return pycrdt.StickyIndex.from_json(found).get_index(transaction)

            end = math.inf
            return at(lower, -1) <= at(left, -1) < at(right, end) <= at(upper, end)


def _encode(piece: Piece) -> bytes:
    """The piece in Yjs' encoding: empty values, or a hole where it is of no sequence."""
    length = encode_number(piece.stop - piece.start)
    if piece.place.kind in KEYED or piece.place.kind == GONE:
        return bytes((_GC,)) + length
    info = _ANY | (_HAS_LEFT if piece.left else 0) | (_HAS_RIGHT if piece.right else 0)
    origins = b"".join(
        encode_number(part) for unit in (piece.left, piece.right) for part in unit or ()
    )
    if not origins:
        root = piece.place.root.encode()
        origins = b"\x01" + encode_number(len(root)) + root
    return bytes((info,)) + origins + length + _UNDEFINED * (piece.stop - piece.start)
