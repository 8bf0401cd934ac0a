"""Many datagrams in one system call: UDP_SEGMENT to send, UDP_GRO to receive (Linux).

CPU time a datagram, sender and receiver together, in microseconds, on loopback (Linux 6.18,
Python 3.11), a call for each datagram against both options:

    datagrams waiting          1      4     32    128
    128 bytes, plain                5.4    4.7
    128 bytes, both                 2.8    0.6
    1,452 bytes, plain       8.0    5.6    5.1    5.0
    1,452 bytes, both        9.2    2.9    0.7    0.8

    datagrams waiting          1      3     16
    16,384 bytes, plain      8.8    6.7    8.0
    16,384 bytes, both      10.1    5.0    4.7

Both pay wherever more than one datagram waits; a lone one therefore takes the plain send
(8.5 and 9.4 with coalescing on: `recvmsg` costs half a microsecond more than `recvfrom`).
The whole path, in CPU time for a flush of 32 datagrams of 1,452 bytes, both ends: 41 µs against
208; of 24 of 16,384 bytes: 285 against 355; of 16 of 128 bytes: 29 against 108; of one: 18
against 17.
Reading into one buffer of our own and copying out cost more than letting Python allocate.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Sequence

from lattica.path.sockets import Physical
from lattica.path.udp_options import SOL_UDP, UDP_GRO, UDP_SEGMENT

MAX_SEGMENTS = 64  # datagrams in one send, on the oldest kernels that know the option
MAX_RUN = 65_507  # bytes in one send: the largest UDP payload over IPv4
MAX_READ = 65_535
_ATTEMPTS = 3  # each earlier ICMP error fails one send
_SIZE = struct.Struct("=i")
_ANCILLARY = socket.CMSG_SPACE(_SIZE.size)
# Not ENOBUFS: there the device has dropped the datagram, and the socket stays writable.
_FULL = (errno.EAGAIN, errno.EINTR)
# What a kernel or a device answers that cannot segment; also, oddly, to too large a segment.
_REFUSED = (errno.EIO, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.EMSGSIZE)


def run_end(datagrams: Sequence[bytes], start: int) -> int:
    """Where the run that begins at `start` ends: equal sizes, the last may be shorter."""
    size = total = len(datagrams[start])
    end, stop = start + 1, min(len(datagrams), start + MAX_SEGMENTS)
    while end < stop:
        length = len(datagrams[end])
        total += length
        if not 0 < length <= size or total > MAX_RUN:
            break
        end += 1
        if length < size:
            break
    return end


def cut(data: bytes, size: int) -> list[bytes]:
    """The datagrams of a coalesced read."""
    return [data[start : start + size] for start in range(0, len(data), size)]


class BatchReader:
    """Reads runs of datagrams where the kernel hands them out so."""

    def __init__(self, sock: socket.socket, *, coalesced: bool) -> None:
        self._socket = sock
        self.coalesced = coalesced
        self.reads = 0
        self.datagrams = 0
        self.bytes = 0

    def read(self) -> tuple[list[bytes], Physical]:
        """Datagrams of one sender, in order.

        Raises:
            BlockingIOError: nothing waits.
            OSError: an ICMP error of an earlier send, reported once.
        """
        size = 0
        if self.coalesced:
            data, ancillary, _, physical = self._socket.recvmsg(MAX_READ, _ANCILLARY)
            if ancillary:
                level, kind, value = ancillary[0]
                if level == SOL_UDP and kind == UDP_GRO:
                    size = _SIZE.unpack_from(value)[0]
        else:
            data, physical = self._socket.recvfrom(MAX_READ)
        datagrams = cut(data, size) if 0 < size < len(data) else [data]
        self.reads += 1
        self.datagrams += len(datagrams)
        self.bytes += len(data)
        return datagrams, physical


class BatchWriter:
    """Sends runs of datagrams in one call each, where the kernel can cut them apart."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        segmented: bool,
        failed: Callable[[OSError, Physical, int], None],
    ) -> None:
        """`failed(error, to, size)` is told of a datagram of `size` bytes given up."""
        self._socket = sock
        self._failed = failed
        self.segmented = segmented
        self.writes = 0
        self.datagrams = 0
        self.bytes = 0

    def write(self, datagrams: Sequence[bytes], physical: Physical, budget: int) -> int:
        """Send in order, at most about `budget` bytes.

        Returns how many left or were given up; fewer than all: the buffer or budget is full.
        """
        position = 0
        while position < len(datagrams) and budget > 0:
            end = run_end(datagrams, position) if self.segmented else position + 1
            before = self.bytes
            if end - position > 1:
                taken = self._write_run(datagrams[position:end], physical)
            else:
                taken = int(self._write_one(datagrams[position], physical))
            position += taken
            budget -= self.bytes - before
            if not taken:
                break
        return position

    def _write_run(self, run: Sequence[bytes], physical: Physical) -> int:
        ancillary = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", len(run[0])))]
        reason = 0
        for _ in range(_ATTEMPTS):
            try:
                sent = self._socket.sendmsg(run, ancillary, 0, physical)
            except OSError as error:
                reason = error.errno or 0
                if reason in _FULL:
                    return 0
                if reason == errno.ENOBUFS:
                    for datagram in run:
                        self._failed(error, physical, len(datagram))
                    return len(run)
                if reason in _REFUSED:
                    break
            else:
                self._count(len(run), sent)
                return len(run)
        return self._write_singly(run, physical, reason)

    def _write_singly(self, run: Sequence[bytes], physical: Physical, reason: int) -> int:
        """Send a run that was refused as a whole, and learn why."""
        before, taken = self.datagrams, 0
        for datagram in run:
            if not self._write_one(datagram, physical):
                break
            taken += 1
        if reason in _REFUSED and taken and self.datagrams - before == taken:
            self.segmented = False  # each by itself does fit: it was the option
        return taken

    def _write_one(self, datagram: bytes, physical: Physical) -> bool:
        """Whether the datagram left, or was given up; False if the buffer is full."""
        failure: OSError | None = None
        for _ in range(_ATTEMPTS):
            try:
                sent = self._socket.sendto(datagram, physical)
            except OSError as error:
                if error.errno in _FULL:
                    return False
                # Either an earlier packet's ICMP error, reported once, or this packet
                # cannot be sent; the retry tells which.
                failure = error
                if error.errno in (errno.EMSGSIZE, errno.ENOBUFS):
                    break
            else:
                self._count(1, sent)
                return True
        assert failure is not None
        self._failed(failure, physical, len(datagram))
        return True

    def _count(self, datagrams: int, size: int) -> None:
        self.writes += 1
        self.datagrams += datagrams
        self.bytes += size
