"""What a store may forget: the least recently used that nobody has pinned and nobody uses."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable

import msgspec

from lattica.errors import StoreError
from lattica.store.blocks.blockstore import BlockStore
from lattica.store.blocks.content import Content, key_of
from lattica.store.blocks.manifest import FileEntry, Manifest


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """One manifest of a store."""

    digest: bytes
    manifest: Manifest
    here: int  # bytes of its files that are here
    is_pinned: bool
    used: float  # when it was last added, fetched or read; seconds since the Unix epoch


class Swept(msgspec.Struct, frozen=True, kw_only=True):
    """What was deleted."""

    manifests: tuple[bytes, ...]
    files: int  # their contents, each once
    size: int  # bytes of them


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at every byte found."""

    blocks: int  # good ones
    size: int  # bytes of them
    damaged: int  # not here any more, so that they are fetched again
    missing: int


def listing(store: BlockStore) -> list[Held]:
    """The manifests that are here, most recently used first; damaged ones are left out."""
    found = []
    pins = store.pins()
    for digest in store.manifests():
        try:
            manifest = store.whole(digest)
        except StoreError:
            continue
        contents = _contents(store, manifest.files)
        for content in contents.values():
            content.refresh()
        found.append(
            Held(
                digest=digest,
                manifest=manifest,
                here=sum(contents[key_of(file)].here() for file in manifest.files),
                is_pinned=digest in pins,
                used=store.used(digest),
            )
        )
    return sorted(found, key=lambda held: held.used, reverse=True)


def sweep(store: BlockStore, quota: int | None) -> Swept:
    """Delete contents that no manifest names, and manifests until the rest is `quota` bytes.

    The least recently used go first. What is pinned, or used by any process, stays, also where
    that is more than the quota. With None only what was removed, or no manifest names, is deleted.
    """
    with store.claims.sweeping():
        in_use = store.claims.in_use()
        for digest in store.manifests():
            if store.is_unwanted(digest) and digest not in in_use:
                store.forget(digest)
        needed, pins = _needed(store), store.pins()
        users = Counter(key for keys in needed.values() for key in keys)
        sizes: Counter[str] = Counter()
        for key, size in store.contents():
            sizes[key] += size
        gone = []
        if quota is not None:
            total = sum(size for key, size in sizes.items() if users[key])
            for digest, keys in needed.items():
                if total <= quota:
                    break
                if digest in pins or digest in in_use:
                    continue
                store.forget(digest)
                gone.append(digest)
                for key in keys:
                    users[key] -= 1
                    if not users[key]:
                        total -= sizes[key]
        unnamed = {key: size for key, size in sizes.items() if not users[key]}
        for key in unnamed:
            store.drop(key)
        return Swept(manifests=tuple(gone), files=len(unnamed), size=sum(unnamed.values()))


def verify(store: BlockStore, digest: bytes | None = None) -> Verified:
    """Read every block, or those of one manifest; damaged ones are from then on not here.

    Raises:
        BlockMissingError: the manifest is not here.
        StoreError: its bytes are those of no manifest.
    """
    chosen = store.manifests() if digest is None else [digest]
    good = size = damaged = missing = 0
    seen: set[str] = set()
    for each in chosen:
        try:
            files = store.known(each).files
        except StoreError:
            if digest is not None:
                raise
            damaged += 1
            continue
        for key, content in _contents(store, files).items():
            if key in seen:
                continue
            seen.add(key)
            content.settle()
            for index, block in enumerate(content.blocks):
                if not content.has(index):
                    missing += 1
                elif content.read(index) is None:
                    damaged += 1
                else:
                    good, size = good + 1, size + block.size
    return Verified(blocks=good, size=size, damaged=damaged, missing=missing)


def _contents(store: BlockStore, files: Iterable[FileEntry]) -> dict[str, Content]:
    return {key_of(file): store.content(file) for file in files}


def _needed(store: BlockStore) -> dict[bytes, set[str]]:
    """The contents that each manifest needs, the least recently used first."""
    needed = {}
    for digest in sorted(store.manifests(), key=store.used):
        with contextlib.suppress(StoreError):  # a damaged one needs nothing
            needed[digest] = {key_of(file) for file in store.known(digest).files}
    return needed
