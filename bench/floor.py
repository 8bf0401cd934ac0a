"""The floor: asyncio TCP and msgspec without encryption, in a few lines."""

from __future__ import annotations

import asyncio
import itertools
import struct
from typing import Any

import msgspec

_LENGTH = struct.Struct(">I")


class _Frames(asyncio.Protocol):
    """Length-prefixed frames over TCP, coalesced into one write per loop turn."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._pending: list[bytes] = []
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        buffer = self._received
        buffer += data
        start = 0
        while len(buffer) - start >= 4:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if len(buffer) - start - 4 < length:
                break
            self.frame(bytes(buffer[start + 4 : start + 4 + length]))
            start += 4 + length
        del buffer[:start]

    def frame(self, data: bytes) -> None:
        """One whole frame arrived."""

    def send(self, data: bytes) -> None:
        """Queue a frame."""
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._flush)
        self._pending.append(_LENGTH.pack(len(data)) + data)

    def _flush(self) -> None:
        self._transport.write(b"".join(self._pending))
        self._pending.clear()


class FloorServer(_Frames):
    """Answers each frame with itself."""

    def frame(self, data: bytes) -> None:
        number, body = msgspec.msgpack.decode(data)
        self.send(msgspec.msgpack.encode((number, body)))


class FloorClient(_Frames):
    """Matches answers to calls."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}

    def frame(self, data: bytes) -> None:
        number, body = msgspec.msgpack.decode(data)
        self._waiting.pop(number).set_result(body)

    async def echo(self, body: bytes) -> bytes:
        """One call."""
        number = next(self._numbers)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self.send(msgspec.msgpack.encode((number, body)))
        return await future  # loopback in one bench run: the server outlives the call

    def close(self) -> None:
        """Hang up."""
        self._transport.close()
