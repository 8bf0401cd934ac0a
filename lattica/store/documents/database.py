"""Documents on disk: one SQLite file for all documents of a peer."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

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
CREATE TABLE IF NOT EXISTS notices (
    document TEXT NOT NULL,
    author BLOB NOT NULL,
    upto INTEGER NOT NULL,  -- the author's last update that counts; -1: a grant
    notice BLOB NOT NULL,
    PRIMARY KEY (document, author, upto)
);
CREATE TABLE IF NOT EXISTS snapshots (
    document TEXT PRIMARY KEY,
    snapshot BLOB NOT NULL
);
"""
MAX_READ = 4096  # envelopes read at a time
_FEW = 500  # values in one statement; SQLite's own limit is higher

T = TypeVar("T")


class Row(NamedTuple):
    """One accepted envelope."""

    document: str
    author: bytes
    sequence: int
    envelope: bytes


class NoticeRow(NamedTuple):
    """A notice; `upto` is the author's last update that counts, None for a grant."""

    document: str
    author: bytes
    upto: int | None
    notice: bytes


class SnapshotRow(NamedTuple):
    """A document without its history, as of all rows added before."""

    document: str
    snapshot: bytes


Entry = Row | NoticeRow | SnapshotRow


class Part(NamedTuple):
    """An author's envelopes after `start`, up to `stop`."""

    author: bytes
    start: int
    stop: int


class Database:
    """Blocking; used by one thread at a time."""

    def __init__(self, path: Path, *, fsync: bool = True) -> None:
        """Open or create the file; with `fsync`, what is committed survives a power cut.

        Raises:
            StoreError: it cannot be opened, or is no database.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                level = "FULL" if fsync else "NORMAL"
                self._connection.execute(f"PRAGMA synchronous = {level}")
                self._connection.executescript(_SCHEMA)
            except BaseException:
                self._connection.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"cannot open {path}: {error}; move it away to fetch the documents from peers again"
            ) from None

    def append(self, entries: Sequence[Entry]) -> None:
        """Commit everything or nothing.

        Raises:
            StoreError: nothing was committed.
        """
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                for kind, group in itertools.groupby(entries, type):
                    _WRITERS[kind](self._connection, group)
        except sqlite3.Error as error:
            raise StoreError(f"cannot write {self.path}: {error}") from None

    def snapshot(self, document: str) -> bytes:
        """The document's last snapshot; b"" if there is none.

        Raises:
            StoreError: the file cannot be read.
        """
        query = "SELECT snapshot FROM snapshots WHERE document = ?"
        found = self._read(lambda: self._connection.execute(query, (document,)).fetchone())
        return b"" if found is None else bytes(found[0])

    def load(self, document: str, bases: dict[bytes, int]) -> list[bytes]:
        """The accepted envelopes after `bases`, the last ones known of each author, in order.

        Raises:
            StoreError: the file cannot be read.
        """

        def read() -> list[bytes]:
            # Numbers first, so that what a snapshot covers is not read.
            index = self._connection.execute(
                "SELECT id, author, sequence FROM envelopes WHERE document = ?", (document,)
            )
            late = sorted(row for row, author, number in index if number > bases.get(author, 0))
            found: list[bytes] = []
            for few in _batches(late):
                marks = ",".join("?" * len(few))
                query = f"SELECT envelope FROM envelopes WHERE id IN ({marks}) ORDER BY id"
                found += [bytes(data) for (data,) in self._connection.execute(query, few)]
            return found

        return self._read(read)

    def read(self, document: str, parts: Sequence[Part], limit: int) -> tuple[list[Row], bool]:
        """The first envelopes of `parts` in order, about `limit` bytes; whether these are all.

        Raises:
            StoreError: the file cannot be read.
        """

        def read() -> tuple[list[Row], bool]:
            late: list[tuple[int, bytes, int]] = []
            for part in parts:
                # Of one author, numbers rise as ids do: more than these do not fit anyway.
                late += self._connection.execute(
                    "SELECT id, author, sequence FROM envelopes"
                    " WHERE document = ? AND author = ? AND sequence > ? AND sequence <= ?"
                    " ORDER BY sequence LIMIT ?",
                    (document, *part, MAX_READ + 1),
                )
            found: list[Row] = []
            size = 0
            for row, author, number in sorted(late):
                if size >= limit or len(found) >= MAX_READ:
                    return found, False
                (data,) = self._connection.execute(
                    "SELECT envelope FROM envelopes WHERE id = ?", (row,)
                ).fetchone()
                found.append(Row(document, bytes(author), number, bytes(data)))
                size += len(data)
            return found, True

        return self._read(read)

    def at(
        self, document: str, places: Iterable[tuple[bytes, int]]
    ) -> dict[tuple[bytes, int], bytes]:
        """The envelopes with these authors and numbers, as far as they are here.

        Raises:
            StoreError: the file cannot be read.
        """

        def read() -> dict[tuple[bytes, int], bytes]:
            found = {}
            for author, sequence in places:
                row = self._connection.execute(
                    "SELECT envelope FROM envelopes"
                    " WHERE document = ? AND author = ? AND sequence = ?",
                    (document, author, sequence),
                ).fetchone()
                if row is not None:
                    found[author, sequence] = bytes(row[0])
            return found

        return self._read(read)

    def contents(self) -> dict[str, dict[bytes, int]]:
        """How many updates of each author are here, by document.

        Raises:
            StoreError: the file cannot be read.
        """
        found: dict[str, dict[bytes, int]] = {}
        query = "SELECT document, author, COUNT(*) FROM envelopes GROUP BY 1, 2 ORDER BY 1"
        for document, author, count in self._read(
            lambda: self._connection.execute(query).fetchall()
        ):
            found.setdefault(document, {})[bytes(author)] = count
        return found

    def notices(self, document: str) -> list[bytes]:
        """The notices kept about a document's authors.

        Raises:
            StoreError: the file cannot be read.
        """
        query = "SELECT notice FROM notices WHERE document = ?"
        return [
            bytes(data)
            for (data,) in self._read(
                lambda: self._connection.execute(query, (document,)).fetchall()
            )
        ]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _read(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except sqlite3.Error as error:
            raise StoreError(
                f"cannot read {self.path}: {error}; "
                "move it away to fetch the documents from peers again"
            ) from None


def _write_rows(connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
    # One that is there already keeps its place in the order: others may rest on it.
    connection.executemany(
        "INSERT INTO envelopes (document, author, sequence, envelope) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (document, author, sequence) DO UPDATE SET envelope = excluded.envelope",
        rows,
    )


def _write_notices(connection: sqlite3.Connection, rows: Iterable[NoticeRow]) -> None:
    for document, author, upto, notice in rows:
        if upto is not None:
            # What does not count any more leaves together with whatever was made of it.
            connection.execute(
                "DELETE FROM envelopes WHERE document = ? AND author = ? AND sequence > ?",
                (document, author, upto),
            )
            connection.execute("DELETE FROM snapshots WHERE document = ?", (document,))
        connection.execute(
            "DELETE FROM notices WHERE document = ? AND author = ? AND (upto = -1) = ?",
            (document, author, upto is None),
        )
        connection.execute(
            "INSERT INTO notices VALUES (?, ?, ?, ?)",
            (document, author, -1 if upto is None else upto, notice),
        )


def _write_snapshots(connection: sqlite3.Connection, rows: Iterable[SnapshotRow]) -> None:
    connection.executemany("INSERT OR REPLACE INTO snapshots VALUES (?, ?)", rows)


_WRITERS: dict[type, Callable[[sqlite3.Connection, Iterable], None]] = {  # type: ignore[type-arg]
    Row: _write_rows,
    NoticeRow: _write_notices,
    SnapshotRow: _write_snapshots,
}


def _batches(values: Sequence[T]) -> Iterable[Sequence[T]]:
    return (values[start : start + _FEW] for start in range(0, len(values), _FEW))
