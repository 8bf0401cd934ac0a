"""A text of a document, as its users see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from lattica.errors import DocumentError
from lattica.store.documents.face import Owner

if TYPE_CHECKING:
    import pycrdt


class DocumentText:
    """A text that several peers edit at once; indices count code points, as Python's do.

    pycrdt counts UTF-8 bytes and its clocks UTF-16 units. Neither is seen here, and no edit
    cuts a code point in two. (Of what a reader takes for one character, such as a letter
    and a combining accent, an edit may well remove a part, as in any Python text.)
    """

    def __init__(self, document: Owner, name: str) -> None:
        self._document = document
        self._name = name

    def insert(self, index: int, text: str) -> None:
        """Put `text` before the code point at `index`; at the end if there is none.

        Raises:
            DocumentError: too large, or no text that can be encoded.
            GrantError: this peer may not write.
        """
        self[index:index] = text

    def append(self, text: str) -> None:
        """Put `text` at the end."""
        end = len(self)
        self[end:end] = text

    def delete(self, start: int, stop: int | None = None) -> None:
        """Remove the code points from `start` to `stop`, by default one."""
        self[start : start + 1 if stop is None else stop] = ""

    def __setitem__(self, part: slice, text: str) -> None:
        held = str(self)
        start, stop, step = part.indices(len(held))
        if step != 1:
            raise ValueError("a document's text is written in slices without gaps only")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DocumentError(f"a document cannot hold half a character: {error}") from None
        stop = max(start, stop)
        at = len(held[:start].encode())
        with self._document.transaction():
            found = self._text
            if stop > start:
                del found[at : at + len(held[start:stop].encode())]
            if text:
                found.insert(at, text)

    def __iadd__(self, text: str) -> Self:
        self.append(text)
        return self

    def __str__(self) -> str:
        return str(self._text)

    def __len__(self) -> int:
        return len(str(self))

    def __getitem__(self, part: int | slice) -> str:
        return str(self)[part]

    def __eq__(self, other: object) -> bool:
        return str(self) == (str(other) if isinstance(other, DocumentText) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"DocumentText({self._document.name}/{self._name}: {str(self)!r:.80})"

    @property
    def _text(self) -> pycrdt.Text:
        return self._document.state.text(self._name)
