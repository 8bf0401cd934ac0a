"""The routing table's contacts, kept on disk between runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from lattica.files import replace
from lattica.identity import wire
from lattica.identity.tickets import Contact

NAME = "contacts.msgpack"
MAX_CONTACTS = 256


class ContactFile:
    """Reads and writes the contacts; without a directory it keeps nothing."""

    def __init__(self, directory: Path | None) -> None:
        self._path = None if directory is None else directory / NAME
        self._saved: tuple[Contact, ...] = ()

    @property
    def is_kept(self) -> bool:
        """Whether there is a directory."""
        return self._path is not None

    def load(self) -> tuple[Contact, ...]:
        """The contacts of the last run; none if there is no file, or it cannot be read.

        A lost file costs no more than a ticket's contacts, so damage is no error.
        """
        if self._path is None:
            return ()
        try:
            return wire.decode(self._path.read_bytes(), tuple[Contact, ...])[:MAX_CONTACTS]
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
            return ()

    def save(self, contacts: Sequence[Contact]) -> None:
        """Write the contacts, if they changed; an empty table does not erase the last one.

        Raises:
            OSError: the directory cannot be written.
        """
        kept = tuple(contacts[:MAX_CONTACTS])
        if self._path is None or not kept or kept == self._saved:
            return
        # It is written on the event loop, and what a loss of power takes is learned again.
        replace(self._path, wire.encode(kept), durable=False)
        self._saved = kept
