"""What a store may forget: the least recently used that nobody has pinned and nobody uses."""

from __future__ import annotations

import contextlib

import msgspec

from lattica.errors import BlockMissingError, StoreError
from lattica.store.blockstore import BlockStore
from lattica.store.manifest import Manifest, decode_manifest


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """One manifest of a store."""

    digest: bytes
    manifest: Manifest
    here: int  # bytes of its blocks that are here
    is_pinned: bool
    used: float  # when it was last added, fetched or read; seconds since the Unix epoch


class Swept(msgspec.Struct, frozen=True, kw_only=True):
    """What was deleted."""

    manifests: tuple[bytes, ...]
    blocks: int
    size: int  # bytes of blocks


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at every byte found."""

    blocks: int  # good ones
    size: int  # bytes of them
    damaged: int  # deleted, so that they are fetched again
    missing: int


def listing(store: BlockStore) -> list[Held]:
    """The manifests that are here, most recently used first; damaged ones are left out."""
    found = []
    pins = store.pins()
    for digest in store.manifests():
        try:
            manifest = decode_manifest(store.manifest(digest))
        except StoreError:
            continue
        blocks = {block.hash: block for file in manifest.files for block in file.blocks}
        here = sum(block.size for block in blocks.values() if store.has(block))
        found.append(
            Held(
                digest=digest,
                manifest=manifest,
                here=here,
                is_pinned=digest in pins,
                used=store.used(digest),
            )
        )
    return sorted(found, key=lambda held: held.used, reverse=True)


def sweep(store: BlockStore, quota: int | None) -> Swept:
    """Delete blocks that no manifest names, and manifests until the rest is `quota` bytes.

    The least recently used go first. What is pinned, or used by any process, stays, also where
    that is more than the quota. With None only what no manifest names is deleted.
    """
    with store.claims.sweeping():
        gone = []
        if quota is not None:
            in_use = store.claims.in_use()
            held = listing(store)
            shared: dict[bytes, int] = {}  # by how many manifests each block is named
            sizes: dict[bytes, int] = {}
            for each in held:
                for block in _blocks(each.manifest):
                    shared[block] = shared.get(block, 0) + 1
            for file in (file for each in held for file in each.manifest.files):
                sizes.update((b.hash, b.size) for b in file.blocks if store.has(b))
            total = sum(sizes.values())
            for each in reversed(held):
                if total <= quota:
                    break
                if each.is_pinned or each.digest in in_use:
                    continue
                store.forget(each.digest)
                gone.append(each.digest)
                for block in _blocks(each.manifest):
                    shared[block] -= 1
                    if not shared[block]:
                        total -= sizes.get(block, 0)
        named = {block for each in listing(store) for block in _blocks(each.manifest)}
        blocks = size = 0
        for digest, nbytes in store.blocks():
            if digest not in named:
                store.drop(digest)
                blocks, size = blocks + 1, size + nbytes
        return Swept(manifests=tuple(gone), blocks=blocks, size=size)


def verify(store: BlockStore, digest: bytes | None = None) -> Verified:
    """Read every block, or those of one manifest, and delete what is damaged.

    Raises:
        BlockMissingError: the manifest is not here.
    """
    chosen = store.manifests() if digest is None else [digest]
    good = size = damaged = missing = 0
    seen: set[bytes] = set()
    for each in chosen:
        try:
            manifest = decode_manifest(store.manifest(each))
        except BlockMissingError:
            if digest is not None:
                raise
            damaged += 1
            continue
        for block in (block for file in manifest.files for block in file.blocks):
            if block.hash in seen:
                continue
            seen.add(block.hash)
            was_here = store.has(block)
            with contextlib.suppress(BlockMissingError):
                size += len(store.read(block.hash))
                good += 1
                continue
            damaged, missing = damaged + was_here, missing + (not was_here)
    return Verified(blocks=good, size=size, damaged=damaged, missing=missing)


def _blocks(manifest: Manifest) -> set[bytes]:
    return {block.hash for file in manifest.files for block in file.blocks}
