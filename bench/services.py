"""What the measured peer serves."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator

from bench.peak import Peak
from lattica.rpc import Buffer, method

NAME = "bench"


class Service:
    """Echoes, uploads and streams, all of bytes."""

    def __init__(self) -> None:
        self._peak: Peak | None = None

    @method()
    async def echo(self, data: Buffer) -> Buffer:
        """The same bytes."""
        return data

    @method()
    async def repeat(self, data: bytes) -> bytes:
        """The same bytes, small ones: they travel inside the message."""
        return data

    @method()
    async def take(self, data: Buffer) -> int:
        """How many bytes came."""
        return len(data)

    @method()
    async def store(self, pieces: AsyncIterator[Buffer]) -> int:
        """Writes what comes to a file, as it comes; how many bytes came."""
        with tempfile.TemporaryFile() as file:
            async for piece in pieces:
                file.write(piece.data)
            return file.tell()

    @method()
    async def items(self, size: int) -> AsyncIterator[bytes]:
        """Small items without end."""
        item = b"x" * size
        while True:
            yield item

    @method()
    async def bulk(self, size: int) -> AsyncIterator[Buffer]:
        """Large buffers without end."""
        item = Buffer(b"x" * size)
        while True:
            yield item

    @method()
    async def hang(self) -> None:
        """Never answers."""
        await asyncio.Event().wait()

    @method()
    async def watch_memory(self) -> None:
        """Measure memory from here."""
        self._peak = Peak()

    @method()
    async def peak(self) -> int:
        """The most memory since `watch_memory`, more than then, in bytes."""
        return 0 if self._peak is None else self._peak.extra()
