"""What disks do to blocks."""

from __future__ import annotations

from pathlib import Path

from lattica.store.blocks.blockstore import BlockStore
from lattica.store.blocks.manifest import hash_of


def spoil(store: BlockStore, digest: bytes) -> None:
    """A block's bytes become others, and nobody is told."""
    for content, index in store._index.places(digest):
        path = content.path if content.path.exists() else content._part
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(content._offsets[index])
            file.write(bytes(content.blocks[index].size))


def lose(store: BlockStore, digest: bytes) -> None:
    """A block is not here any more."""
    spoil(store, digest)
    assert store._find(digest) is None


def has(store: BlockStore, digest: bytes) -> bool:
    """Whether a block is here."""
    return any(content.has(index) for content, index in store._index.places(digest))


def good_bytes(directory: Path) -> bool:
    """Whether everything in a store that others could see is what it should be."""
    store = BlockStore(directory)
    for digest in store.manifests():
        for file in store.known(digest).files:
            content = store.content(file)
            if content.is_whole:
                data, at = content.path.read_bytes(), 0
                for block in file.blocks:
                    if hash_of(data[at : at + block.size]) != block.hash:
                        return False
                    at += block.size
    return True
