"""The records a peer keeps for others, kept on disk between runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from lattica.dht.storage import Kept
from lattica.files import Snapshots
from lattica.identity import wire
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed

NAME = "records.msgpack"


class Line(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One record, and who pays for the room that it takes."""

    envelope: Signed
    sponsor: PeerId | None  # who handed it over, if not its author
    root: PeerId | None  # see `Kept`


class RecordFile:
    """Reads and writes records; without a directory it keeps nothing."""

    def __init__(self, directory: Path | None) -> None:
        self._file = None if directory is None else Snapshots(directory / NAME)

    @property
    def is_kept(self) -> bool:
        """Whether there is a directory."""
        return self._file is not None

    def load(self) -> tuple[Line, ...]:
        """What was kept; none if there is no file, or it cannot be read.

        Others have copies and authors say it again, so damage is no error.
        """
        if self._file is None:
            return ()
        try:
            return wire.decode(self._file.path.read_bytes(), tuple[Line, ...])
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
            return ()

    def save(self, records: Sequence[Kept], version: int) -> None:
        """Replace what was kept, for good when this returns: not for an event loop.

        Of two threads that save at once, that with the higher `version` has its way.

        Raises:
            OSError: the directory cannot be written.
        """
        if self._file is not None:
            lines = (Line(kept.envelope, kept.sponsor, kept.root) for kept in records)
            self._file.write(lambda: wire.encode(tuple(lines)), version)
