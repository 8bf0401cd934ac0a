"""Envelopes on disk: one SQLite file for all documents of a peer."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lattica.errors import StoreError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS envelopes (
    id INTEGER PRIMARY KEY,  -- the order of acceptance
    document TEXT NOT NULL,
    author BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    envelope BLOB NOT NULL,
    UNIQUE (document, author, sequence)
);
CREATE TABLE IF NOT EXISTS evidence (
    document TEXT NOT NULL,
    author BLOB NOT NULL,
    accepted BLOB NOT NULL,
    other BLOB NOT NULL,
    PRIMARY KEY (document, author)
);
"""


class Row(NamedTuple):
    """One accepted envelope."""

    document: str
    author: bytes
    sequence: int
    envelope: bytes


class Proof(NamedTuple):
    """Two envelopes with which an author contradicts itself."""

    document: str
    author: bytes
    accepted: bytes
    other: bytes


class Database:
    """Blocking; used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            StoreError: it cannot be opened, or is no database.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                # FULL: what is acknowledged survives a power cut, not only a crash.
                self._connection.execute("PRAGMA synchronous = FULL")
                self._connection.executescript(_SCHEMA)
            except BaseException:
                self._connection.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"cannot open {path}: {error}; move it away to fetch the documents from peers again"
            ) from None

    def append(self, rows: Sequence[Row], proofs: Sequence[Proof]) -> None:
        """Commit everything or nothing.

        Raises:
            StoreError: nothing was committed.
        """
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany(
                    "INSERT INTO envelopes (document, author, sequence, envelope)"
                    " VALUES (?, ?, ?, ?)",
                    rows,
                )
                self._connection.executemany(
                    "INSERT OR IGNORE INTO evidence VALUES (?, ?, ?, ?)", proofs
                )
        except sqlite3.Error as error:
            raise StoreError(f"cannot write {self.path}: {error}") from None

    def load(self, document: str) -> list[bytes]:
        """The accepted envelopes of a document, in order.

        Raises:
            StoreError: the file cannot be read.
        """
        try:
            rows = self._connection.execute(
                "SELECT envelope FROM envelopes WHERE document = ? ORDER BY id", (document,)
            )
            return [bytes(envelope) for (envelope,) in rows]
        except sqlite3.Error as error:
            raise StoreError(f"cannot read {self.path}: {error}") from None

    def contents(self) -> dict[str, dict[bytes, int]]:
        """How many updates of each author are here, by document.

        Raises:
            StoreError: the file cannot be read.
        """
        found: dict[str, dict[bytes, int]] = {}
        try:
            rows = self._connection.execute(
                "SELECT document, author, COUNT(*) FROM envelopes GROUP BY 1, 2 ORDER BY 1"
            )
            for document, author, count in rows:
                found.setdefault(document, {})[bytes(author)] = count
            return found
        except sqlite3.Error as error:
            raise StoreError(f"cannot read {self.path}: {error}") from None

    def proofs(self, document: str) -> list[Proof]:
        """The evidence kept about a document.

        Raises:
            StoreError: the file cannot be read.
        """
        try:
            rows = self._connection.execute(
                "SELECT document, author, accepted, other FROM evidence WHERE document = ?",
                (document,),
            )
            return [Proof(*row) for row in rows]
        except sqlite3.Error as error:
            raise StoreError(f"cannot read {self.path}: {error}") from None

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
