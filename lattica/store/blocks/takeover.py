"""A store as it was laid out before: each block a file of its own, `blocks/ab/HASH`. Blocking."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections import Counter
from pathlib import Path

from lattica.errors import StoreError
from lattica.store.blocks.content import Content
from lattica.store.blocks.index import Index
from lattica.store.blocks.manifest import hash_of


def take_over(directory: Path, index: Index) -> None:
    """Put together what such blocks make up, and delete them as they are needed no more.

    A crash in the middle loses nothing: the next that opens the store goes on.

    Raises:
        StoreError: the disk has no room for the largest file twice; says what to do.
    """
    old = directory / "blocks"
    if not old.is_dir():
        return
    with (directory / "takeover").open("ab") as door:
        fcntl.flock(door, fcntl.LOCK_EX)
        contents = index.contents()
        needed = Counter(hashed for content in contents for hashed in _hashes(content))
        try:
            for content in sorted(contents, key=lambda each: each.size):
                _put_together(content, old)
                for hashed in _hashes(content):
                    needed[hashed] -= 1
                    if not needed[hashed]:
                        _path(old, hashed).unlink(missing_ok=True)
        except StoreError as error:
            raise StoreError(
                f"{old} is of an older layout and cannot be taken over: {error}; make room on "
                f"that disk, or delete {old} to have what it holds fetched again"
            ) from None
        shutil.rmtree(old, ignore_errors=True)


def _put_together(content: Content, old: Path) -> None:
    content.settle()
    found = False
    for at in content.missing():
        block = content.blocks[at]
        with contextlib.suppress(OSError):
            data = _path(old, block.hash).read_bytes()
            if hash_of(data) == block.hash:
                content.write(at, data)
                found = True
    if found:
        content.complete()


def _hashes(content: Content) -> set[bytes]:
    return {block.hash for block in content.blocks}


def _path(old: Path, hashed: bytes) -> Path:
    name = hashed.hex()
    return old / name[:2] / name
