"""What a fetch is to bring first: files, or the tensors of a span in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lattica.errors import StoreError
from lattica.store.blocks.manifest import Manifest
from lattica.store.blocks.sets import mask_of

Part = str | tuple[str, int, int]  # a file's path; with the first byte and the one after the last


def ranks_of(manifest: Manifest, numbers: Mapping[bytes, int], first: Iterable[Part]) -> list[int]:
    """The blocks of each part, as sets that `Picker` takes; `numbers` are those of the blocks.

    Raises:
        StoreError: there is no such file.
    """
    files = {file.path: file for file in manifest.files}
    ranks = []
    for part in first:
        path, start, end = (part, 0, 2**63) if isinstance(part, str) else part
        file = files.get(path)
        if file is None:
            raise StoreError(f"the manifest has no file {path}")
        at, chosen = 0, []
        for block in file.blocks:
            if at < end and at + block.size > start:
                chosen.append(numbers[block.hash])
            at += block.size
        ranks.append(mask_of(chosen))
    return ranks
