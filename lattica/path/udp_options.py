"""Socket options of the UDP path. Where a system has not got one, its number is None.

Numbers are from Linux's uapi headers; the socket module does not name them everywhere.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys

IS_LINUX = sys.platform == "linux"

SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104

MSG_ERRQUEUE = getattr(socket, "MSG_ERRQUEUE", 0)

_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55
_MEMINFO_WORDS = 9
_MEMINFO_DROPS = 8
_IP_MTU_DISCOVER = 10
_IP_RECVERR = 11
_IPV6_MTU_DISCOVER = 23
_IPV6_RECVERR = 25
_PMTUDISC_PROBE = 3  # set the don't-fragment bit, believe no ICMP about sizes

_EXTENDED_ERROR = struct.Struct("=I4B2I")  # struct sock_extended_err


def size_buffers(sock: socket.socket, wanted: int) -> tuple[int, int]:
    """Ask for `wanted` bytes each way; the (receive, send) sizes granted."""
    return (
        _size_buffer(sock, socket.SO_RCVBUF, _SO_RCVBUFFORCE, wanted),
        _size_buffer(sock, socket.SO_SNDBUF, _SO_SNDBUFFORCE, wanted),
    )


def _size_buffer(sock: socket.socket, option: int, force: int, wanted: int) -> int:
    sock.setsockopt(socket.SOL_SOCKET, option, wanted)
    # Linux reports twice what holds data, the rest being its own bookkeeping.
    granted = sock.getsockopt(socket.SOL_SOCKET, option) // 2
    if granted < wanted and IS_LINUX:
        with contextlib.suppress(OSError):  # needs CAP_NET_ADMIN; then past the system's limit
            sock.setsockopt(socket.SOL_SOCKET, force, wanted)
            granted = sock.getsockopt(socket.SOL_SOCKET, option) // 2
    return granted


def ask_for_icmp(sock: socket.socket) -> None:
    """Have ICMP errors queued with the address they are about, where the system can."""
    if not MSG_ERRQUEUE:
        return
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)


def forbid_fragments(sock: socket.socket) -> None:
    """Let no datagram be cut into fragments: sizes are discovered (RFC 8899 §3, item 3)."""
    if not IS_LINUX:
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
    if sock.family == socket.AF_INET6:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)


def coalesce_received(sock: socket.socket) -> bool:
    """Ask for runs of datagrams of one sender in one read; whether the kernel does that."""
    if not IS_LINUX:
        return False
    try:
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)
    except OSError:
        return False
    return True


def can_segment(sock: socket.socket) -> bool:
    """Whether the kernel knows how to cut one send into datagrams."""
    if not IS_LINUX:
        return False
    try:
        sock.getsockopt(SOL_UDP, UDP_SEGMENT)
    except OSError:
        return False
    return True


def overruns(sock: socket.socket) -> int:
    """Datagrams that the kernel dropped because the receive buffer was full."""
    if not IS_LINUX:
        return 0
    try:
        words = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * _MEMINFO_WORDS)
    except OSError:
        return 0
    if len(words) < 4 * _MEMINFO_WORDS:
        return 0
    return int(struct.unpack_from("=I", words, 4 * _MEMINFO_DROPS)[0])


def error_number(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The errno in what came from the error queue (`man 7 ip`, IP_RECVERR); 0 if unknown."""
    for level, kind, data in ancillary:
        is_error = (level, kind) in (
            (socket.IPPROTO_IP, _IP_RECVERR),
            (socket.IPPROTO_IPV6, _IPV6_RECVERR),
        )
        if is_error and len(data) >= _EXTENDED_ERROR.size:
            return int(_EXTENDED_ERROR.unpack_from(data)[0])
    return 0
