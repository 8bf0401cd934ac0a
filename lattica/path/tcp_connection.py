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
from lattica.path.wrapping import Wrapping, WrappingError

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
        wrapping: Wrapping | None = None,
        label: str = "",
        refusal: bytes = b"",
    ) -> None:
        """`physical` is where the other end is, or is to be; `label` what people call it.

        `wrapping` lies between the socket and the frames. `refusal` is said to who speaks
        something else than frames.
        """
        self.address = address
        self.label = label
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
        self._wrapping = wrapping
        self._refusal = refusal
        self._sealed = b""  # what the wrapping wants sent before anything else
        self._ready: asyncio.Future[None] | None = None
        self._is_connected = accepted is not None
        self._is_waiting = False  # for the socket to become writable
        self._socket = accepted
        if accepted is not None:
            _prepare(accepted)
            loop.add_reader(accepted.fileno(), self._readable)
            if wrapping is not None:
                self._sealed = wrapping.begin()

    @property
    def queued(self) -> int:
        """Bytes that wait for the socket."""
        return self._writer.size + len(self._sealed)

    async def ready(self) -> None:
        """Connect now, and wait until frames can be sent. The caller has a deadline.

        Raises:
            WrappingError: it came to nothing, and why.
        """
        if self._is_open:
            return
        if self._ready is None:
            self._ready = self._loop.create_future()
            # Who waited may have gone: then nobody is left to be told.
            self._ready.add_done_callback(lambda done: done.cancelled() or done.exception())
        if self._socket is None and not self.is_ended:
            self._connect()
        await asyncio.shield(self._ready)

    @property
    def _is_open(self) -> bool:
        """Whether frames can be sent."""
        return self._is_connected and (self._wrapping is None or self._wrapping.is_ready)

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
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(WrappingError("the connection is closed"))
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
        if self._wrapping is not None:
            self._sealed = self._wrapping.begin()
        self._opened()
        self._write()

    def _opened(self) -> None:
        if self._ready is not None and not self._ready.done() and self._is_open:
            self._ready.set_result(None)

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
            if self._wrapping is not None:
                data = self._unwrap(data)
            datagrams = self._reader.feed(data) if data else []
        except WrappingError as error:
            self._end("unwrapped", str(error))
            return
        except FrameError:
            self._refuse()
            self._end("malformed")
            return
        if self.is_ended:
            return  # it could not be answered
        if datagrams:
            self._owner.connection_received(self, datagrams)

    def _unwrap(self, data: bytes) -> bytes:
        assert self._wrapping is not None
        contents, answer = self._wrapping.received(data)
        self._sealed += answer
        self._opened()
        if (self._sealed or self._writer.size) and not self._is_waiting:
            self._write()
        return contents

    def _refuse(self) -> None:
        """Tell who speaks something else that there is nothing here; once, if it is taken."""
        if self._wrapping is None or not self._wrapping.is_ready or not self._refusal:
            return
        with contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.send(self._wrapping.seal(self._refusal))

    def _write(self) -> None:
        if self._wrapping is not None:
            self._write_sealed()
            return
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

    def _write_sealed(self) -> None:
        """Like `_write`. What is sealed has to leave as it is, so little is sealed ahead."""
        sock, writer, wrapping = self._socket, self._writer, self._wrapping
        assert wrapping is not None
        while sock is not None:
            if not self._sealed and wrapping.is_ready and writer.size:
                contents = b"".join(writer.parts())
                self._sealed = wrapping.seal(contents)
                writer.sent(len(contents))
            if not self._sealed:
                break
            try:
                sent = sock.send(self._sealed)
            except (BlockingIOError, InterruptedError):
                self._await_writable(self._write)
                return
            except OSError as error:
                self._end(errno.errorcode.get(error.errno or 0, "unknown"))
                return
            self.writes += 1
            self.bytes_out += sent
            self._sealed = self._sealed[sent:]
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

    def _end(self, reason: str, why: str = "") -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(WrappingError(why or f"the connection failed ({reason})"))
        self.close()
        self._owner.connection_ended(self, reason)


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    with contextlib.suppress(OSError):  # reset already
        # Small frames must not wait for acknowledgements of earlier ones.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
