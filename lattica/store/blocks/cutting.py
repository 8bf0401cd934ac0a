"""Where files are cut into blocks, so that new versions share what did not change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from lattica.config import KIB, MIB

SMALL = 64 * KIB  # neighbouring tensors up to this size together share a block
MAX_HEADER = 64 * MIB


class _Tensor(msgspec.Struct):
    """What a safetensors header says of a tensor; the format has more fields."""

    data_offsets: tuple[int, int]
    shape: list[int] = []

    @property
    def row(self) -> int:
        """Bytes of one row, the first of its dimensions being their number."""
        start, end = self.data_offsets
        rows = self.shape[0] if self.shape else 1
        return (end - start) // rows if rows > 0 and (end - start) % rows == 0 else 0


def cut(path: Path, file: BinaryIO, size: int, block: int) -> Iterator[int]:
    """The sizes of a file's blocks, each at most `block` bytes.

    Tensors of a `.safetensors` file begin blocks of their own (small ones share), so a
    tensor that is the same in two versions gives the same blocks wherever it lies. Those of a
    large tensor hold whole rows, so that a row which changes costs one block.
    """
    start = 0
    for end, row in _boundaries(path, file, size):
        most = block - block % row if 0 < row <= block else block
        while start < end:
            length = min(most, end - start)
            yield length
            start += length


def _boundaries(path: Path, file: BinaryIO, size: int) -> list[tuple[int, int]]:
    """Where blocks must end, and the rows (in bytes) of what ends there; 0 if it has none."""
    tensors = _tensors(file, size) if path.suffix == ".safetensors" else []
    if not tensors:
        return [(size, 0)]
    kept, start = [(tensors[0][0], 0)], tensors[0][0]  # the header is a block of its own
    previous = start
    for end, row in tensors[1:]:
        if end - previous >= SMALL and previous > start:
            kept.append((previous, 0))  # a large tensor ends the group of small ones before it
            start = previous
        if end - start >= SMALL:
            kept.append((end, row if previous == start else 0))
            start = end
        previous = end
    return [*kept, (size, 0)]


def _tensors(file: BinaryIO, size: int) -> list[tuple[int, int]]:
    """Ends of the header and of each tensor, in order, and their rows; empty if it is no such file.

    Format: 8 bytes little-endian header size, JSON header, data.
    """
    file.seek(0)
    header = int.from_bytes(file.read(8), "little")
    data = 8 + header
    if size < data or header > MAX_HEADER:
        return []
    try:
        entries = msgspec.json.decode(file.read(header), type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        tensors = [msgspec.json.decode(raw, type=_Tensor) for raw in entries.values()]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []
    rows = {data + tensor.data_offsets[1]: tensor.row for tensor in tensors} | {data: 0}
    ends = sorted(rows)
    if ends[0] != data or ends[-1] > size:
        return []
    return [(end, rows[end]) for end in ends]
