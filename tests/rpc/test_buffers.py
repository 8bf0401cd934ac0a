"""What can be sent as a `Buffer`, without a copy, and what says why it cannot."""

from __future__ import annotations

import mmap
import tracemalloc
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lattica.config import MIB
from lattica.rpc import Buffer, method
from tests.rpc.mesh import Mesh


@pytest.mark.parametrize(
    "data",
    [
        b"bytes",
        bytearray(b"bytes"),
        memoryview(b"some bytes")[2:7],
        array("d", [1.0, 2.0]),
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.arange(5, dtype=np.float16),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.array(7.0),
        np.zeros((0, 3)),
        np.zeros((3, 0, 2), dtype=np.int8),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    ],
    ids=lambda data: type(data).__name__,
)
def test_whatever_has_a_contiguous_buffer(data: Any) -> None:
    buffer = Buffer(data)
    assert bytes(buffer) == memoryview(data).tobytes()
    assert buffer.data.format == "B"
    assert buffer.data.ndim == 1


def test_an_array_is_not_copied() -> None:
    values = np.zeros(4, dtype=np.int32)
    buffer = Buffer(values)
    values[0] = 1
    assert bytes(buffer)[:4] == (1).to_bytes(4, "little")


@pytest.mark.parametrize(
    "data",
    [np.zeros((4, 4))[:, 1], np.zeros((4, 6)).T, np.arange(9)[::-1], memoryview(b"abcd")[::2]],
    ids=["column", "transposed", "reversed", "stepped"],
)
def test_what_is_not_in_one_piece_is_never_copied_silently(data: Any) -> None:
    with pytest.raises(ValueError, match="ascontiguousarray"):
        Buffer(data)


def test_what_has_no_buffer() -> None:
    with pytest.raises(TypeError):
        Buffer("text")


def test_a_file_by_its_mapping(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        buffer = Buffer(mapped)
        assert bytes(buffer) == b"x" * 100_000
        buffer.data.release()


def test_tensors_of_torch() -> None:
    torch = pytest.importorskip("torch")
    for tensor in (
        torch.arange(6, dtype=torch.float32).reshape(2, 3),
        torch.tensor([True, False]),
        torch.tensor(3.0),
        torch.ones(3, requires_grad=True),
        torch.zeros(0),
    ):
        assert bytes(Buffer(tensor)) == tensor.detach().numpy().tobytes()
    halves = torch.tensor([1.0, -2.0], dtype=torch.bfloat16)
    back = torch.frombuffer(bytearray(bytes(Buffer(halves))), dtype=torch.bfloat16)
    assert torch.equal(back, halves)
    with pytest.raises(ValueError, match="contiguous"):
        Buffer(torch.zeros(4, 4).T[:2])
    with pytest.raises(TypeError, match=r"tensor\.cpu"):
        Buffer(torch.zeros(3, device="meta"))


class Store:
    def __init__(self, path: Path) -> None:
        self.path = path

    @method()
    async def take(self, data: Buffer) -> int:
        return int(np.frombuffer(data.data, np.int64).sum())

    @method()
    async def write(self, parts: AsyncIterator[Buffer]) -> int:
        with self.path.open("wb") as file:
            async for part in parts:
                file.write(part.data)
            return file.tell()


@pytest.mark.anyio
async def test_a_body_costs_its_size_once_and_a_stream_next_to_nothing(tmp_path: Path) -> None:
    """Peak memory of both ends together, beside the body itself."""
    body = np.arange(4 * MIB, dtype=np.int64)  # 32 MiB
    raw = memoryview(body).cast("B")
    async with Mesh() as mesh:
        mesh.b.register("store", Store(tmp_path / "body"))
        stub = mesh.a.client(mesh.b.local, Store, "store")
        await stub.take(Buffer(body[:1000]))
        peaks = []
        tracemalloc.start()
        try:
            assert await stub.take(Buffer(body)) == int(body.sum())
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.reset_peak()
            size = 256 * 1024
            parts: Any = (Buffer(raw[at : at + size]) for at in range(0, body.nbytes, size))
            assert await stub.write(parts) == body.nbytes
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert (tmp_path / "body").read_bytes() == raw
    assert peaks[0] <= 1.5 * body.nbytes
    assert peaks[1] <= 0.1 * body.nbytes
