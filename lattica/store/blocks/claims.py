"""Who is at what in a store that several processes share: locks that the kernel lets go of.

Each claim is a file with a lock on it, so a process that dies, however it dies, claims nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import secrets
from collections.abc import Iterator
from pathlib import Path

from lattica.errors import StoreError


class Claims:
    """The locks of one store's directory. Blocking; called in threads."""

    def __init__(self, directory: Path) -> None:
        """The folders must exist already."""
        self._door = directory / "lock"
        self._uses = directory / "uses"

    @contextlib.contextmanager
    def adding(self) -> Iterator[None]:
        """Blocks are about to be relied upon that no manifest names yet: nobody may sweep."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def sweeping(self) -> Iterator[None]:
        """Blocks are about to be deleted: nobody may add. Waits for those who do."""
        with self._locked(fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def using(self, digest: bytes) -> Iterator[None]:
        """A manifest's blocks are being fetched or read. Waits for a sweep that runs."""
        path = self._uses / f"{digest.hex()}-{secrets.token_hex(8)}"
        try:
            with self.adding():  # a sweep would take one that is not locked yet for a dead one's
                file = path.open("xb")
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise StoreError(f"cannot claim {path}: {error}") from None
        with file:
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def is_shared(self, digest: bytes) -> bool:
        """Whether more than one seems to use a manifest now."""
        return len(list(self._uses.glob(f"{digest.hex()}-*"))) > 1

    def in_use(self) -> set[bytes]:
        """The manifests that some process uses; what dead ones have left is cleared."""
        found = set()
        for path in self._uses.iterdir():
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    with contextlib.suppress(ValueError):
                        found.add(bytes.fromhex(path.name.partition("-")[0]))
                else:
                    path.unlink(missing_ok=True)
        return found

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        try:
            file = self._door.open("ab")
        except OSError as error:
            raise StoreError(f"cannot lock {self._door}: {error}") from None
        with file:
            fcntl.flock(file, how)
            yield
