"""Files out of a store: as copies that are the user's, or as links to what the store keeps."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from lattica.errors import BlockMissingError, StoreError
from lattica.store.blocks.content import Content
from lattica.store.blocks.disk import clear, clone, scratch, sync
from lattica.store.blocks.manifest import check_path, hash_of

PART = ".lattica-part"  # how files that are being written end

Named = tuple[str, Content]  # the path in the manifest


def export(files: Iterable[Named], folder: Path) -> None:
    """Write files below `folder`; each appears whole and verified or not at all.

    They share the store's bytes where the disk can share them copy-on-write, else they are
    copies: who writes to them changes nothing in the store.

    Raises:
        BlockMissingError: a block is not here, or was damaged on disk.
        StoreError: a path leads elsewhere through a link, or the disk does not take it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        root = folder.resolve()
        for path, content in files:
            check_path(path)
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.parent.resolve().is_relative_to(root):
                raise StoreError(f"{target.parent} leads out of {folder}")
            clear(target.parent, f".*{PART}")
            # A name of its own: another process may be writing the same file.
            with scratch(target.parent, PART) as (out, temporary):
                if not _share(content, out):
                    out.seek(0)
                    out.truncate()
                    for index in range(len(content.blocks)):
                        out.write(block_of(content, index))
                sync(out)
                os.replace(temporary, target)
    except OSError as error:
        raise StoreError(f"cannot write below {folder}: {error}") from None


def block_of(content: Content, index: int) -> bytes:
    """A block's bytes, verified again.

    Raises:
        BlockMissingError: it is not here, or was damaged on disk.
    """
    data = content.read(index)
    if data is None:
        name = content.blocks[index].hash.hex()[:16]
        raise BlockMissingError(f"block {name} is not here, or was damaged on disk")
    return data


def _share(content: Content, out: BinaryIO) -> bool:
    """Clone a content that is whole; false if that cannot be done, or it is damaged."""
    if not content.is_whole:
        return False
    with content.path.open("rb") as source:
        if not clone(source, out):
            return False
    at = 0
    for block in content.blocks:
        if hash_of(os.pread(out.fileno(), block.size, at)) != block.hash:
            return False
        at += block.size
    return True


def link(files: Iterable[Named], folder: Path) -> None:
    """Make `folder` have symbolic links to the contents, which must be whole.

    Not hard links: those would outlive what `gc` deletes, and would still show what was
    found to be damaged.

    Raises:
        BlockMissingError: a content is not whole.
        StoreError: the disk does not take it.
    """
    try:
        for path, content in files:
            check_path(path)
            if not content.is_whole:
                raise BlockMissingError(f"{path} is not here, or was damaged on disk")
            name = folder / path
            name.parent.mkdir(parents=True, exist_ok=True)
            target = os.path.relpath(content.path.absolute(), name.parent)
            if not (name.is_symlink() and os.readlink(name) == target):
                name.unlink(missing_ok=True)
                with contextlib.suppress(FileExistsError):  # another process was first
                    name.symlink_to(target)
    except OSError as error:
        raise StoreError(f"cannot link in {folder}: {error}") from None
