"""The records a peer keeps for others, kept on disk between runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from lattica.dht.whole_file import replace
from lattica.identity import wire
from lattica.identity.signed import Signed

NAME = "records.msgpack"


class RecordFile:
    """Reads and writes envelopes; without a directory it keeps nothing."""

    def __init__(self, directory: Path | None) -> None:
        self._path = None if directory is None else directory / NAME

    @property
    def is_kept(self) -> bool:
        """Whether there is a directory."""
        return self._path is not None

    def load(self) -> tuple[Signed, ...]:
        """What was kept; none if there is no file, or it cannot be read.

        Others have copies and authors say it again, so damage is no error.
        """
        if self._path is None:
            return ()
        try:
            return wire.decode(self._path.read_bytes(), tuple[Signed, ...])
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
            return ()

    def save(self, envelopes: Sequence[Signed]) -> None:
        """Replace what was kept.

        Raises:
            OSError: the directory cannot be written.
        """
        if self._path is None:
            return
        replace(self._path, wire.encode(tuple(envelopes)))
