"""One TCP connection that carries datagrams, driven by the event loop's readiness."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from lattica.path.interface import VirtualAddress
from lattica.path.sockets import Physical
from lattica.path.tcp_frames import FrameError, FrameReader, FrameWriter

MAX_QUEUE = 6 * 1024 * 1024  # bytes waiting for the socket; more than any window given out
READ = 256 * 1024  # bytes a wake-up, so that other connections get their turn
_IN_PROGRESS = (errno.EINPROGRESS, errno.EWOULDBLOCK)

OpenSocket = Callable[[int, int], socket.socket]  # given the family and the type


class ConnectionOwner(Protocol):
    """What a connection needs of its path."""

    def connection_received(self, connection: TcpConnection, datagrams: list[bytes]) -> None:
        """Datagrams of one wake-up."""
        ...

    def connection_ended(self, connection: TcpConnection, reason: str) -> None:
        """It is of no more use: refused, reset, ended, or the other end broke the framing."""
        ...


class TcpConnection:
    """Sends and receives frames. Outgoing ones connect when something is to be sent."""

    def __init__(
        self,
        owner: ConnectionOwner,
        loop: asyncio.AbstractEventLoop,
        address: VirtualAddress,
        physical: Physical,
        *,
        family: int = socket.AF_INET,
        open_socket: OpenSocket = socket.socket,
        accepted: socket.socket | None = None,
    ) -> None:
        """`physical` is where the other end is, or is to be."""
        self.address = address
        self.physical = physical
        self.is_accepted = accepted is not None
        self.is_ended = False
        self.holds = 0
        self.expires = float("inf")  # seconds of the loop's clock, while nothing holds it
        self.bytes_in = self.bytes_out = 0
        self.reads = self.writes = 0
        self._owner = owner
        self._loop = loop
        self._family = family
        self._open_socket = open_socket
        self._reader = FrameReader()
        self._writer = FrameWriter(MAX_QUEUE)
        self._is_connected = accepted is not None
        self._is_waiting = False  # for the socket to become writable
        self._socket = accepted
        if accepted is not None:
            _prepare(accepted)
            loop.add_reader(accepted.fileno(), self._readable)

    @property
    def queued(self) -> int:
        """Bytes that wait for the socket."""
        return self._writer.size

    def send(self, datagrams: Sequence[bytes]) -> int:
        """Send or queue; how many were dropped because too much waits already."""
        dropped = self._writer.add(datagrams)
        if self._socket is None and not self.is_ended:
            self._connect()
        elif self._is_connected and not self._is_waiting:
            self._write()
        return dropped

    def close(self) -> None:
        """End it without a word to the owner. Idempotent."""
        self.is_ended = True
        sock, self._socket = self._socket, None
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
            sock.close()

    # ------------------------------------------------------------------ inside

    def _connect(self) -> None:
        sock = self._open_socket(self._family, socket.SOCK_STREAM)
        _prepare(sock)
        self._socket = sock
        number = sock.connect_ex(self.physical)
        if number and number not in _IN_PROGRESS:
            self._end(errno.errorcode.get(number, "unknown"))
            return
        self._await_writable(self._connected)

    def _connected(self) -> None:
        sock = self._socket
        assert sock is not None
        self._stop_waiting(sock)
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._end(errno.errorcode.get(number, "unknown"))
            return
        self._is_connected = True
        self._loop.add_reader(sock.fileno(), self._readable)
        self._write()

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(errno.errorcode.get(error.errno or 0, "unknown"))
            return
        if not data:
            self._end("cut" if self._reader.held else "ended")
            return
        self.reads += 1
        self.bytes_in += len(data)
        try:
            datagrams = self._reader.feed(data)
        except FrameError:
            self._end("malformed")
            return
        if datagrams:
            self._owner.connection_received(self, datagrams)

    def _write(self) -> None:
        sock, writer = self._socket, self._writer
        while sock is not None and writer.size:
            parts = writer.parts()
            try:
                sent = sock.sendmsg(parts)
            except (BlockingIOError, InterruptedError):
                self._await_writable(self._write)
                return
            except OSError as error:
                self._end(errno.errorcode.get(error.errno or 0, "unknown"))
                return
            self.writes += 1
            self.bytes_out += sent
            writer.sent(sent)
        if self._is_waiting and sock is not None:
            self._stop_waiting(sock)

    def _await_writable(self, then: Callable[[], None]) -> None:
        assert self._socket is not None
        if not self._is_waiting:
            self._is_waiting = True
            self._loop.add_writer(self._socket.fileno(), then)

    def _stop_waiting(self, sock: socket.socket) -> None:
        self._is_waiting = False
        self._loop.remove_writer(sock.fileno())

    def _end(self, reason: str) -> None:
        self.close()
        self._owner.connection_ended(self, reason)


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    with contextlib.suppress(OSError):  # reset already
        # Small frames must not wait for acknowledgements of earlier ones.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
