"""The content of one document: a pycrdt Doc that only ever sees checked updates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, cast

import msgspec
import pycrdt
from blake3 import blake3

from lattica.errors import DocumentError
from lattica.identity.keys import PeerId
from lattica.store.update import UpdateFacts

_CLIENT_BITS = 53  # Yjs keeps client ids in a double's integers


def client_id(author: PeerId) -> int:
    """The pycrdt client id that an author must use; nobody chooses one."""
    digest = blake3(b"lattica-doc-client-v1\x00" + author.raw).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _CLIENT_BITS)


class State:
    """Root maps of buffers, and how far each client's entries go."""

    def __init__(self, client: int) -> None:
        self.client = client
        self.clocks: dict[int, int] = {}
        self.writing = False
        self._written: list[bytes] = []
        self._doc = self._fresh()

    def map(self, name: str) -> pycrdt.Map[Any]:
        """The root map `name`, as it is until the next `rebuild`."""
        return cast("pycrdt.Map[Any]", self._doc.get(name, type=pycrdt.Map))

    def names(self) -> list[str]:
        """The root maps."""
        return sorted(self._doc.keys())

    def has(self, needs: dict[int, int]) -> bool:
        """Whether everything that an update rests on is here."""
        return all(self.clocks.get(client, 0) >= clock for client, clock in needs.items())

    def apply(self, update: bytes, facts: UpdateFacts) -> None:
        """Take in an update whose facts were checked.

        Raises:
            DocumentError: pycrdt refuses it; `rebuild` is due.
        """
        try:
            self._doc.apply_update(update)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a panic in Rust is a BaseException
            raise DocumentError(f"pycrdt refuses the update: {error}") from None
        finally:
            self._written.clear()
        self._advance(facts)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Group writes; `take_written` then gives their update."""
        self.writing = True
        self._written.clear()
        try:
            with self._doc.transaction():
                yield
        finally:
            self.writing = False

    def take_written(self) -> bytes | None:
        """The update of the last local transaction, if it changed anything."""
        written, self._written = self._written, []
        return written[0] if written else None

    def wrote(self, facts: UpdateFacts) -> None:
        """The last local transaction is kept."""
        self._advance(facts)

    def rebuild(self, updates: Iterable[bytes]) -> None:
        """Start again from what was accepted; a local transaction is thus undone."""
        self._doc = self._fresh()
        for update in updates:
            self._doc.apply_update(update)
        self._written.clear()

    def digest(self) -> bytes:
        """A hash of the content, the same on peers that read the same."""
        content = {}
        for name in self.names():
            if entries := {key: bytes(data) for key, data in self.map(name).items()}:
                content[name] = entries
        return blake3(msgspec.msgpack.encode(content, order="sorted")).digest()

    def _advance(self, facts: UpdateFacts) -> None:
        if facts.client is not None:
            self.clocks[facts.client] = facts.end

    def _fresh(self) -> pycrdt.Doc[Any]:
        doc: pycrdt.Doc[Any] = pycrdt.Doc(client_id=self.client)
        doc.observe(lambda event: self._written.append(event.update))
        return doc
