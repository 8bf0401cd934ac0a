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


def cut(path: Path, file: BinaryIO, size: int, block: int) -> Iterator[int]:
    """The sizes of a file's blocks, each at most `block` bytes.

    Tensors of a `.safetensors` file begin blocks of their own (small ones share), so a
    tensor that is the same in two versions gives the same blocks wherever it lies.
    """
    start = 0
    for end in _boundaries(path, file, size):
        while start < end:
            length = min(block, end - start)
            yield length
            start += length


def _boundaries(path: Path, file: BinaryIO, size: int) -> list[int]:
    ends = _tensor_ends(file, size) if path.suffix == ".safetensors" else []
    if not ends:
        return [size]
    kept, start = [ends[0]], ends[0]  # the header is a block of its own
    previous = start
    for end in ends[1:]:
        if end - previous >= SMALL and previous > start:
            kept.append(previous)  # a large tensor ends the group of small ones before it
            start = previous
        if end - start >= SMALL:
            kept.append(end)
            start = end
        previous = end
    return [*kept, size]


def _tensor_ends(file: BinaryIO, size: int) -> list[int]:
    """Ends of the header and of each tensor, in order; empty if it is no such file.

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
    ends = sorted({data + tensor.data_offsets[1] for tensor in tensors} | {data})
    return ends if ends[0] == data and ends[-1] <= size else []
