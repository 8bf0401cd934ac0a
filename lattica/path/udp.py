"""The direct path: one UDP socket per peer, driven by the event loop's readiness.

The loop's own datagram transport takes one packet per wake-up and call-back. Here a
wake-up drains all that waits (within a bound), and the link layer is called once.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import psutil

from lattica.errors import AddressError, PathError, PortInUseError
from lattica.path import addresses as text
from lattica.path.interface import QUIC_FIXED_BIT, Receiver, VirtualAddress
from lattica.path.routes import Routes

MAX_DRAIN = 256  # datagrams per wake-up, so that timers and tasks get their turn
MAX_QUEUE = 4 * 1024 * 1024  # bytes waiting for a full send buffer
LOOPBACK_DATAGRAM = 16_384  # bytes; what QUIC's two-byte lengths can express
LOOPBACK_WINDOW = 2 * 1024 * 1024  # bytes; more only makes small calls wait longer
MAX_DATAGRAM = 65_535

# Linux; the socket module does not name them everywhere.
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_MSG_ERRQUEUE = getattr(socket, "MSG_ERRQUEUE", 0)

Physical = tuple[Any, ...]  # what the socket module calls an address


class UdpPath:
    """See `lattica.path.interface.Path`. Physical addresses are those of the socket."""

    def __init__(self, sock: socket.socket, *, socket_buffer: int = 4 * 1024 * 1024) -> None:
        """Take over a bound, non-blocking UDP socket."""
        self._socket = sock
        self._family = sock.family
        self._routes: Routes[Physical] = Routes("udp")
        self._receiver: Receiver | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: deque[tuple[bytes, Physical]] = deque()
        self._queued = 0
        self._closed = False
        self._counters: Counter[str] = Counter()
        self._bound: tuple[str, int] = sock.getsockname()[:2]
        self.buffers = _size_buffers(sock, socket_buffer)
        _ask_for_icmp(sock)

    @classmethod
    def bind(cls, address: str = "0.0.0.0:0", *, socket_buffer: int = 4 * 1024 * 1024) -> UdpPath:
        """A path on a new socket. `socket_buffer` in bytes is asked for, not promised.

        Raises:
            AddressError: `address` is not an address of this machine.
            PortInUseError: another process holds the port.
        """
        host, port = text.split(address)
        try:
            family, kind, protocol, _, physical = socket.getaddrinfo(
                host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
            )[0]
        except (OSError, UnicodeError) as error:
            raise AddressError(f"{address!r} does not resolve: {error}") from None
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.bind(physical)
        except OSError as error:
            sock.close()
            raise _bind_error(error, address, port) from None
        return cls(sock, socket_buffer=socket_buffer)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The bound address, or every address of the machine if bound to all."""
        host, port = self._bound
        if host not in ("0.0.0.0", "::"):
            return (text.join(host, port),)
        return tuple(text.join(each, port) for each in _machine_addresses(self._family))

    @property
    def counters(self) -> Counter[str]:
        return self._counters

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
        self._queue.clear()
        self._socket.close()

    async def resolve(self, address: str) -> VirtualAddress:
        host, port = text.split(address)
        if port == 0:
            raise AddressError(f"{address!r}: port 0 cannot be dialled")
        flags = 0 if self._family == socket.AF_INET else socket.AI_V4MAPPED
        try:
            try:
                found = socket.getaddrinfo(
                    host,
                    port,
                    family=self._family,
                    type=socket.SOCK_DGRAM,
                    flags=flags | socket.AI_NUMERICHOST,
                )
            except socket.gaierror:
                found = await asyncio.get_running_loop().getaddrinfo(
                    host, port, family=self._family, type=socket.SOCK_DGRAM, flags=flags
                )
        except (OSError, UnicodeError) as error:
            raise AddressError(f"{address!r} does not resolve: {error}") from None
        return self._routes.virtual(found[0][4])

    def send(self, datagrams: Sequence[bytes], address: VirtualAddress) -> None:
        physical = self._routes.best(address)
        if physical is None or self._closed:
            self._counters["sent_nowhere"] += len(datagrams)
            return
        if self._queue:
            self._enqueue(datagrams, physical)
            return
        for index, datagram in enumerate(datagrams):
            if not self._send_one(datagram, physical):
                self._enqueue(datagrams[index:], physical)
                return

    def datagram_limit(self, address: VirtualAddress) -> int | None:
        physical = self._routes.best(address)
        if physical is not None and text.is_loopback(physical[0]):
            return LOOPBACK_DATAGRAM
        return None

    def window_limit(self, address: VirtualAddress) -> int | None:
        physical = self._routes.best(address)
        if physical is not None and text.is_loopback(physical[0]):
            # The other end is on this machine, where all are granted the same.
            return min(LOOPBACK_WINDOW, self.buffers[0] // 2)
        return None

    def describe(self, address: VirtualAddress) -> str:
        physical = self._routes.best(address)
        return "forgotten" if physical is None else text.join(physical[0], physical[1])

    def hold(self, address: VirtualAddress) -> None:
        self._routes.hold(address)

    def release(self, address: VirtualAddress) -> None:
        self._routes.release(address)

    # ------------------------------------------------------------------ inside

    def _readable(self) -> None:
        assert self._receiver is not None
        packets: list[tuple[bytes, VirtualAddress]] = []
        virtual = self._routes.virtual
        receive = self._socket.recvfrom
        for _ in range(MAX_DRAIN):
            try:
                data, physical = receive(MAX_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                # The kernel reports an ICMP error of an earlier send once, here.
                self._drain_errors()
                continue
            if not data or not data[0] & QUIC_FIXED_BIT:
                self._counters["garbage"] += 1
                continue
            packets.append((data, virtual(physical)))
        if packets:
            self._receiver.packets_received(packets)
        else:
            self._drain_errors()

    def _send_one(self, datagram: bytes, physical: Physical) -> bool:
        """Whether the datagram left, or was dropped for good; False if the buffer is full."""
        for _ in range(3):
            try:
                self._socket.sendto(datagram, physical)
                return True
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return False
                # Either an earlier packet's ICMP error, reported once, or this packet
                # cannot be sent; the retry tells which.
                self._drain_errors()
                reason = errno.errorcode.get(error.errno or 0, "unknown")
        self._counters[f"send:{reason}"] += 1
        return True

    def _enqueue(self, datagrams: Sequence[bytes], physical: Physical) -> None:
        assert self._loop is not None
        if not self._queue:
            self._loop.add_writer(self._socket.fileno(), self._writable)
        for datagram in datagrams:
            if self._queued + len(datagram) > MAX_QUEUE:
                self._counters["send_queue_full"] += 1
                continue
            self._queue.append((datagram, physical))
            self._queued += len(datagram)

    def _writable(self) -> None:
        assert self._loop is not None
        while self._queue:
            datagram, physical = self._queue[0]
            if not self._send_one(datagram, physical):
                return
            self._queue.popleft()
            self._queued -= len(datagram)
        self._loop.remove_writer(self._socket.fileno())

    def _drain_errors(self) -> None:
        """Read the ICMP errors that Linux queues beside the data (`man 7 ip`, IP_RECVERR)."""
        if not _MSG_ERRQUEUE:
            return
        refused: set[VirtualAddress] = set()
        for _ in range(MAX_DRAIN):
            try:
                _, _, _, physical = self._socket.recvmsg(64, 512, _MSG_ERRQUEUE)
            except OSError:
                break  # empty
            self._counters["icmp_errors"] += 1
            if physical:
                refused.add(self._routes.virtual(physical))
        if refused and self._loop is not None:
            # Not from within a send: the caller is in the middle of its own state.
            self._loop.call_soon(self._report, refused)

    def _report(self, refused: set[VirtualAddress]) -> None:
        if self._receiver is not None and not self._closed:
            for virtual in refused:
                self._receiver.path_refused(virtual)


def _size_buffers(sock: socket.socket, wanted: int) -> tuple[int, int]:
    """Ask for `wanted` bytes each way; the (receive, send) sizes granted."""
    granted = []
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, wanted)
        # Linux reports twice what holds data, the rest being its own bookkeeping.
        granted.append(sock.getsockopt(socket.SOL_SOCKET, option) // 2)
    return granted[0], granted[1]


def _ask_for_icmp(sock: socket.socket) -> None:
    """Have ICMP errors queued with the address they are about, where the system can."""
    if not _MSG_ERRQUEUE:
        return
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)


def _bind_error(error: OSError, address: str, port: int) -> PathError:
    if error.errno == errno.EADDRINUSE:
        return PortInUseError(
            f"UDP port {port} is held by another process; choose another, or 0 for any free one"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return AddressError(f"{address!r} is not an address of this machine")
    if error.errno == errno.EACCES:
        return PathError(f"no permission to use UDP port {port}; choose one above 1023")
    return PathError(f"cannot bind {address!r}: {error}")


def _machine_addresses(family: int) -> list[str]:
    """Addresses others may try: those of the network first, loopback last."""
    found = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET
        or (family == socket.AF_INET6 == entry.family and not entry.address.startswith("fe80"))
    ]
    return sorted(dict.fromkeys(found), key=text.is_loopback)
