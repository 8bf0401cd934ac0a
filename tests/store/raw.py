"""Updates as an author that ignores the rules may write them."""

from __future__ import annotations

from lattica.store.crdt.kinds import Id
from lattica.store.crdt.ledger import counter_key
from lattica.store.crdt.update import ANY, DELETED, STRING
from lattica.store.crdt.values import encode_value

ONE = encode_value(1)
COUNT = encode_value([1, 0])  # one added, none taken off

Piece = bytes | str | int  # a value, a text, or how many units are deleted


def number(value: int) -> bytes:
    """lib0's form."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def text(value: str) -> bytes:
    """lib0's form."""
    return number(len(value.encode())) + value.encode()


def entry(
    content: Piece | list[bytes],
    root: str = "",
    key: str | None = None,
    left: Id | None = None,
    right: Id | None = None,
    *,
    has_key: bool | None = None,
) -> bytes:
    """One entry, at a root or beside others."""
    kind = STRING if isinstance(content, str) else DELETED if isinstance(content, int) else ANY
    is_keyed = key is not None if has_key is None else has_key
    info = kind | (0x80 if left else 0) | (0x40 if right else 0) | (0x20 if is_keyed else 0)
    data = bytes((info,))
    for unit in (left, right):
        data += b"".join(map(number, unit or ()))
    if not left and not right:
        data += b"\x01" + text(root) + (b"" if key is None else text(key))
    if isinstance(content, str):
        return data + text(content)
    if isinstance(content, int):
        return data + number(content)
    values = [content] if isinstance(content, bytes) else content
    return data + number(len(values)) + b"".join(b"t" + number(len(v)) + v for v in values)


def update(
    client: int,
    clock: int,
    *entries: bytes,
    deletes: dict[int, list[tuple[int, int]]] | None = None,
) -> bytes:
    """A whole update; `deletes` are clocks and lengths by client."""
    data = b"\x00"
    if entries:
        data = b"\x01" + number(len(entries)) + number(client) + number(clock) + b"".join(entries)
    data += number(len(deletes or {}))
    for deleted, ranges in (deletes or {}).items():
        data += number(deleted) + number(len(ranges))
        data += b"".join(number(start) + number(length) for start, length in ranges)
    return data


# By client 1: clocks 0-2 are the map's, 3-5 the array's, 6-9 the text's, 10 the count's.
FOUNDATION = update(
    1,
    0,
    *(entry(ONE, "map:m", key) for key in "abc"),
    entry([ONE, ONE, ONE], "array:a"),
    entry("x👍y", "text:t"),
    entry(COUNT, "count:c", counter_key(1)),
)

# What others, and client 1 itself, may add to that.
FITTING = {
    "a key replaced": update(2, 0, entry(ONE, left=(1, 0), has_key=True)),
    "a key anew": update(2, 0, entry(ONE, "map:m", "a")),
    "an item in between": update(2, 0, entry(ONE, left=(1, 3), right=(1, 4))),
    "an item at the end": update(2, 0, entry([ONE, ONE], left=(1, 5))),
    "an item at the start": update(2, 0, entry(ONE, right=(1, 3))),
    "an item by who knew of one": update(2, 0, entry(ONE, left=(1, 3))),
    "an item by who knew of none": update(2, 0, entry(ONE, "array:a")),
    "an item written and deleted": update(2, 0, entry(3, left=(1, 5))),
    "text before a pair": update(2, 0, entry("👍", left=(1, 6), right=(1, 7))),
    "text after a pair": update(2, 0, entry("z", left=(1, 8), right=(1, 9))),
    "a pair deleted": update(2, 0, deletes={1: [(7, 2)]}),
    "a new root of any kind": update(2, 0, entry("x", "text:new"), entry(ONE, "array:new")),
    "a count of its own": update(2, 0, entry(COUNT, "count:c", counter_key(2))),
    "a count gone on": update(
        1, 11, entry(COUNT, left=(1, 10), has_key=True), deletes={1: [(10, 1)]}
    ),
}
