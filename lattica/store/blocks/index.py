"""Where each block of a store lies: which contents, and where in them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from lattica.store.blocks.claims import Claims
from lattica.store.blocks.content import Content, Handles, key_of
from lattica.store.blocks.manifest import FileEntry

Place = tuple[Content, int]  # which block of it


class Index:
    """In memory, made from the manifests. Threads may share it."""

    def __init__(self, directory: Path, claims: Claims) -> None:
        self._directory = directory
        self._claims = claims
        self._handles = Handles()
        self._lock = threading.Lock()
        self._named: dict[bytes, set[str]] = {}  # by a manifest's hash: keys
        self._users: dict[str, int] = {}  # by a content's key: manifests that name it
        self._contents: dict[str, Content] = {}
        self._places: dict[bytes, list[Place]] = {}

    def add(self, digest: bytes, files: Iterable[FileEntry]) -> None:
        """A manifest is here, with these files; there may be others when all of it is here."""
        with self._lock:
            named = self._named.setdefault(digest, set())
            for file in files:
                if (key := key_of(file)) in named:
                    continue
                named.add(key)
                self._users[key] = self._users.get(key, 0) + 1
                if key in self._contents:
                    continue
                content = Content(key, file, self._directory, self._claims, self._handles)
                self._contents[key] = content
                for at, block in enumerate(file.blocks):
                    self._places.setdefault(block.hash, []).append((content, at))

    def discard(self, digest: bytes) -> None:
        """A manifest is here no more."""
        with self._lock:
            for key in self._named.pop(digest, ()):
                self._users[key] -= 1
                if self._users[key]:
                    continue
                del self._users[key]
                gone = self._contents.pop(key)
                for hashed in {block.hash for block in gone.blocks}:
                    left = [place for place in self._places[hashed] if place[0] is not gone]
                    if left:
                        self._places[hashed] = left
                    else:
                        del self._places[hashed]

    @property
    def manifests(self) -> set[bytes]:
        """The manifests that it was made from."""
        with self._lock:
            return set(self._named)

    def is_named(self, key: str) -> bool:
        """Whether a manifest names a content."""
        with self._lock:
            return key in self._users

    def places(self, block: bytes) -> list[Place]:
        """Where a block belongs, whether it is there or not."""
        with self._lock:
            return list(self._places.get(block, ()))

    def content(self, file: FileEntry) -> Content:
        """The content of a file."""
        key = key_of(file)
        with self._lock:
            found = self._contents.get(key)
        return found or Content(key, file, self._directory, self._claims, self._handles)

    def contents(self) -> list[Content]:
        """All that a manifest names."""
        with self._lock:
            return list(self._contents.values())

    def whole(self, size: int) -> Iterator[Content]:
        """The contents of so many bytes that are whole."""
        yield from (each for each in self.contents() if each.size == size and each.is_whole)
