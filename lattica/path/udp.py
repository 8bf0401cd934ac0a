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

from lattica.errors import AddressError
from lattica.path import addresses as text
from lattica.path import sockets
from lattica.path.interface import (
    OURS,
    QUIC_FIXED_BIT,
    PathStats,
    Receiver,
    VirtualAddress,
)
from lattica.path.routes import Routes
from lattica.path.sockets import Physical
from lattica.path.udp_offload import MAX_READ, BatchReader, BatchWriter
from lattica.path.udp_options import (
    MSG_ERRQUEUE,
    ask_for_icmp,
    can_segment,
    coalesce_received,
    error_number,
    forbid_fragments,
    overruns,
    size_buffers,
)

MAX_DRAIN = 256  # datagrams per wake-up, about, so that timers and tasks get their turn
MAX_DRAIN_BYTES = 2 * 1024 * 1024  # per wake-up, about
DATAGRAM_COST = 512  # bytes counted besides the contents, so that empty ones are bounded too
MAX_BURST = 1024 * 1024  # bytes sent in one turn of the loop
MAX_QUEUE = 4 * 1024 * 1024  # bytes waiting for a full send buffer
IP_OVERHEAD = 48  # bytes before the payload: IPv6 and UDP headers
LOOPBACK_DATAGRAM = 61_440  # bytes; the most that leaves room for headers below and above
LOOPBACK_WINDOW = 2 * 1024 * 1024  # bytes; more only makes small calls wait longer


class UdpPath:
    """See `lattica.path.interface.Path`. Physical addresses are those of the socket."""

    def __init__(self, sock: socket.socket, *, socket_buffer: int = 4 * 1024 * 1024) -> None:
        """Take over a bound, non-blocking UDP socket."""
        self._socket = sock
        self._family = sock.family
        self._routes: Routes[Physical] = Routes("udp")
        self._receiver: Receiver | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: deque[tuple[Sequence[bytes], Physical]] = deque()
        self._queued = 0
        self._closed = False
        self._counters: Counter[str] = Counter()
        self._bound: tuple[str, int] = sock.getsockname()[:2]
        self.buffers = size_buffers(sock, socket_buffer)
        self._loopback_mtu = sockets.loopback_mtu(MAX_READ)
        # The other end's buffer is unknown; machines of one mesh are taken to be alike.
        self._burst = min(MAX_BURST, self.buffers[0] // 2)
        ask_for_icmp(sock)
        forbid_fragments(sock)
        self._reader = BatchReader(sock, coalesced=coalesce_received(sock))
        self._writer = BatchWriter(sock, segmented=can_segment(sock), failed=self._send_failed)

    @classmethod
    def bind(cls, address: str = "0.0.0.0:0", *, socket_buffer: int = 4 * 1024 * 1024) -> UdpPath:
        """A path on a new socket. `socket_buffer` in bytes is asked for, not promised.

        Raises:
            AddressError: `address` is not an address of this machine.
            PortInUseError: another process holds the port.
        """
        sock = sockets.bind(address, socket.SOCK_DGRAM)
        return cls(sock, socket_buffer=socket_buffer)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The bound address, or every address of the machine if bound to all."""
        return sockets.reachable(self._bound, self._family)

    @property
    def counters(self) -> Counter[str]:
        return self._counters

    def statistics(self) -> PathStats:
        reader, writer = self._reader, self._writer
        return PathStats(
            datagrams_in=reader.datagrams,
            bytes_in=reader.bytes,
            reads=reader.reads,
            datagrams_out=writer.datagrams,
            bytes_out=writer.bytes,
            writes=writer.writes,
            queued=self._queued,
            receive_buffer=self.buffers[0],
            send_buffer=self.buffers[1],
            overruns=0 if self._closed else overruns(self._socket),
            coalesced=reader.coalesced,
            segmented=writer.segmented,
            dropped=dict(self._counters),
        )

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
        scheme, where = text.split_scheme(address)
        if scheme != text.UDP:
            raise AddressError(f"{address!r} is not of the form host:port")
        _, physical = await sockets.look_up(where, socket.SOCK_DGRAM, self._family)
        return self._routes.virtual(physical)

    def send(self, datagrams: Sequence[bytes], address: VirtualAddress) -> None:
        physical = self._routes.best(address)
        if physical is None or self._closed:
            self._counters["sent_nowhere"] += len(datagrams)
            return
        sent = 0 if self._queue else self._writer.write(datagrams, physical, self._burst)
        if sent < len(datagrams):
            self._enqueue(datagrams[sent:], physical)

    def spray(self, datagram: bytes, addresses: Sequence[str]) -> None:
        for address in addresses:
            if self._closed:
                return
            try:
                host, port = text.split(address)
                self._socket.sendto(datagram, self._physical(host, port))
            except (AddressError, OSError):
                self._counters["spray_failed"] += 1

    def datagram_limit(self, address: VirtualAddress) -> int | None:
        physical = self._routes.best(address)
        if physical is not None and text.is_loopback(physical[0]):
            return min(LOOPBACK_DATAGRAM, self._loopback_mtu - IP_OVERHEAD)
        return None

    def can_probe(self, address: VirtualAddress) -> bool:
        return True

    def window_limit(self, address: VirtualAddress) -> int | None:
        physical = self._routes.best(address)
        if physical is not None and text.is_loopback(physical[0]):
            # The other end is on this machine, where all are granted the same.
            return min(LOOPBACK_WINDOW, self.buffers[0] // 2)
        return None

    def describe(self, address: VirtualAddress) -> str:
        physical = self._routes.best(address)
        return "forgotten" if physical is None else text.join(text.plain(physical[0]), physical[1])

    def hold(self, address: VirtualAddress) -> None:
        self._routes.hold(address)

    def release(self, address: VirtualAddress) -> None:
        self._routes.release(address)

    # ------------------------------------------------------------------ inside

    def _physical(self, host: str, port: int) -> tuple[str, int]:
        if self._family == socket.AF_INET6 and ":" not in host:
            host = f"::ffff:{host}"
        return host, port

    def _readable(self) -> None:
        assert self._receiver is not None
        packets: list[tuple[bytes, VirtualAddress]] = []
        probes: list[tuple[bytes, VirtualAddress]] = []
        read, virtual = self._reader.read, self._routes.virtual
        room = MAX_DRAIN_BYTES
        while room > 0 and len(packets) + len(probes) < MAX_DRAIN:
            try:
                datagrams, physical = read()
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                # The kernel reports an ICMP error of an earlier send once, here.
                self._drain_errors()
                room -= DATAGRAM_COST
                continue
            address: VirtualAddress | None = None
            for data in datagrams:
                room -= len(data) + DATAGRAM_COST
                is_quic = data and data[0] & QUIC_FIXED_BIT
                if not is_quic and (not data or data[0] not in OURS):
                    self._counters["garbage"] += 1
                    continue
                if address is None:
                    address = virtual(physical)
                (packets if is_quic else probes).append((data, address))
        if packets:
            self._receiver.packets_received(packets)
        else:
            self._drain_errors()
        if probes and not self._closed:
            self._receiver.probes_received(probes)

    def _enqueue(self, datagrams: Sequence[bytes], physical: Physical) -> None:
        assert self._loop is not None
        kept = []
        for datagram in datagrams:
            if self._queued + len(datagram) > MAX_QUEUE:
                self._counters["send_queue_full"] += 1
                continue
            kept.append(datagram)
            self._queued += len(datagram)
        if not kept:
            return
        if not self._queue:
            self._loop.add_writer(self._socket.fileno(), self._writable)
        self._queue.append((kept, physical))

    def _writable(self) -> None:
        """Go on where the buffer or the burst was full; one burst for each turn of the loop."""
        assert self._loop is not None
        budget = self._burst
        while self._queue and budget > 0:
            datagrams, physical = self._queue.popleft()
            sent = self._writer.write(datagrams, physical, budget)
            size = sum(map(len, datagrams[:sent]))
            self._queued -= size
            budget -= size
            if sent < len(datagrams):
                self._queue.appendleft((datagrams[sent:], physical))
                return
        if not self._queue:
            self._loop.remove_writer(self._socket.fileno())

    def _send_failed(self, error: OSError, physical: Physical, size: int) -> None:
        """The writer gave a datagram up."""
        self._drain_errors()
        self._counters[f"send:{errno.errorcode.get(error.errno or 0, 'unknown')}"] += 1
        if error.errno == errno.EMSGSIZE and self._loop is not None:
            # Not from within a send: the caller is in the middle of its own state.
            self._loop.call_soon(self._report_too_big, self._routes.virtual(physical), size)

    def _drain_errors(self) -> None:
        """Read the ICMP errors that Linux queues beside the data (`man 7 ip`, IP_RECVERR)."""
        if not MSG_ERRQUEUE:
            return
        refused: set[VirtualAddress] = set()
        for _ in range(MAX_DRAIN):
            try:
                _, ancillary, _, physical = self._socket.recvmsg(64, 512, MSG_ERRQUEUE)
            except OSError:
                break  # empty
            if error_number(ancillary) == errno.EMSGSIZE:
                # Our own send was told the same; a router's word would be anybody's, and
                # discovery finds the size without it.
                self._counters["icmp_too_big"] += 1
                continue
            self._counters["icmp_errors"] += 1
            if physical:
                refused.add(self._routes.virtual(physical))
        if refused and self._loop is not None:
            self._loop.call_soon(self._report_refused, refused)

    def _report_refused(self, refused: set[VirtualAddress]) -> None:
        if self._receiver is not None and not self._closed:
            for virtual in refused:
                self._receiver.path_refused(virtual)

    def _report_too_big(self, address: VirtualAddress, size: int) -> None:
        if self._receiver is not None and not self._closed:
            self._receiver.path_too_big(address, size)
