"""The kinds of content of a document, and how the names of pycrdt's roots tell them.

The kind stands in the root's name (`map:NAME`), so it is known whenever an update is read,
and no root is ever used as two kinds: pycrdt diverges or panics when one is.
"""

from __future__ import annotations

from typing import NamedTuple

from lattica.errors import DocumentError

MAP, ARRAY, TEXT, COUNT = "map", "array", "text", "count"
KINDS = (MAP, ARRAY, TEXT, COUNT)
KEYED = frozenset((MAP, COUNT))  # the others are sequences
GONE = ""  # where entries are that were collected as garbage
MAX_NAME = 1024  # bytes of a name or a key

Id = tuple[int, int]  # Yjs' name of a unit of content: who added it, and at what clock


class Place(NamedTuple):
    """Where in a document something stands."""

    kind: str  # one of `KINDS`
    name: str
    key: str | None = None  # of a map's entry; in a counter the author's; None in sequences

    @property
    def root(self) -> str:
        """pycrdt's name of the root."""
        return f"{self.kind}:{self.name}"


def place_of(root: str, key: str | None) -> Place:
    """The place that an update names.

    Raises:
        DocumentError: the root's name tells no kind, or a key is there or missing against it.
    """
    kind, colon, name = root.partition(":")
    if not colon or kind not in KINDS:
        raise DocumentError(
            f"the root {root!r:.80} has no kind; documents written before they had kinds cannot "
            "be read: export them with the version that wrote them"
        )
    if (key is not None) is not (kind in KEYED):
        raise DocumentError(f"an entry of the {kind} {name!r:.80} has the form of another kind")
    return Place(kind, name, key)


def require_name(name: str) -> str:
    """A name or key that a user gives, when it is one.

    Raises:
        DocumentError: it is none.
    """
    if not isinstance(name, str) or not name.isprintable() or len(name.encode()) > MAX_NAME:
        raise DocumentError(f"{name!r:.80} is no name: printable text of at most {MAX_NAME} bytes")
    return name
