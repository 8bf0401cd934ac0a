"""What a host and its fork server say to each other: length-prefixed, with sockets beside."""

from __future__ import annotations

import array
import socket
import struct
from typing import Any, TypeVar

import msgspec

M = TypeVar("M")

_HEAD = struct.Struct("<I")
_FD = struct.calcsize("i")
MAX_MESSAGE = 1024 * 1024
MAX_FDS = 2


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Tagged with its class's name."""


class Start(_Message, frozen=True):
    """First of all."""

    preload: tuple[str, ...]  # modules that workers find loaded
    directory: str  # removed when the server ends


class Spawn(_Message, frozen=True):
    """Fork a worker. Beside it: the worker's end of its pipe, and of its log."""

    number: int
    directory: str  # the worker's own; made here
    environment: dict[str, str]
    memory: int  # bytes; 0: no limit
    threads: int  # for numerical libraries; 0: their own choice


class Signal(_Message, frozen=True):
    """Signal a worker and all of its process group."""

    pid: int
    signum: int


class Spawned(_Message, frozen=True):
    """A worker runs; `pid` 0: it could not be forked, for `reason`."""

    number: int
    pid: int
    reason: str = ""


class Exited(_Message, frozen=True):
    """A worker has ended, with `status` as of `os.waitpid`."""

    pid: int
    status: int


ToServer = Start | Spawn | Signal
FromServer = Spawned | Exited


def send(sock: socket.socket, message: Any, fds: tuple[int, ...] = ()) -> None:
    """Write one message, blocking. The descriptors travel with its first byte."""
    body = msgspec.msgpack.encode(message)
    data = _HEAD.pack(len(body)) + body
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sent = sock.sendmsg([data], beside)
    sock.sendall(data[sent:])


def receive(sock: socket.socket, kind: Any) -> tuple[Any, list[int]] | None:
    """Read one message and its descriptors, blocking; None at the end."""
    data, beside, _, _ = sock.recvmsg(_HEAD.size, socket.CMSG_SPACE(MAX_FDS * _FD))
    fds: list[int] = []
    for level, what, raw in beside:
        if level == socket.SOL_SOCKET and what == socket.SCM_RIGHTS:
            found = array.array("i")
            found.frombytes(raw[: len(raw) - len(raw) % _FD])
            fds += found
    if not data:
        return None
    data += _read(sock, _HEAD.size - len(data))
    return msgspec.msgpack.decode(_read(sock, _HEAD.unpack(data)[0]), type=kind), fds


class Messages:
    """Cuts received bytes into messages, for the host's event loop."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._decoder: msgspec.msgpack.Decoder[FromServer] = msgspec.msgpack.Decoder(FromServer)

    def feed(self, data: bytes) -> list[FromServer]:
        """The messages now complete."""
        self._data += data
        found = []
        while len(self._data) >= _HEAD.size:
            end = _HEAD.size + _HEAD.unpack_from(self._data)[0]
            if len(self._data) < end:
                break
            found.append(self._decoder.decode(self._data[_HEAD.size : end]))
            del self._data[:end]
        return found


def _read(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            raise EOFError("the other end closed in the middle of a message")
        data += chunk
    return data
