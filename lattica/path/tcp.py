"""The fallback for networks that block UDP: QUIC packets as frames in TCP connections.

Nothing is encrypted here, because QUIC does that. A connection serves one link: each dial
makes its own, and what an end of it does to the link is the link's business. Addresses
are written `tcp:host:port`.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Self

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
from lattica.path.proxy import ConnectWrapping, proxy_for
from lattica.path.sockets import Physical
from lattica.path.tcp_connection import OpenSocket, TcpConnection
from lattica.path.tcp_frames import MAX_FRAME
from lattica.path.wrapping import Chain, Wrapping, WrappingError

LOOPBACK_WINDOW = 2 * 1024 * 1024  # bytes; more only makes small calls wait longer
WINDOW = 4 * 1024 * 1024  # bytes in flight; less than a connection queues, so none is dropped
MAX_ACCEPTED = 1024  # connections
MAX_PER_SOURCE = 64  # connections accepted from one IPv4 address or IPv6 /56
IDLE = 10.0  # seconds that a connection may exist without a link
LINGER = 2.0  # seconds for a link's last words
WRAP_TIMEOUT = 5.0  # seconds for TLS, and for a proxy's answer
SWEEP = 0.5  # seconds between looks at the clock
_ACCEPTS = 32  # in one wake-up
_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class TcpPath:
    """See `lattica.path.interface.Path`."""

    SCHEME = text.TCP
    REFUSAL = b""  # said to who does not speak in frames

    def __init__(
        self,
        listener: socket.socket | None = None,
        *,
        open_socket: OpenSocket = socket.socket,
        proxy: str = "",
    ) -> None:
        """Take over a listening socket; without one, connections can only be dialled.

        `open_socket` makes the sockets of outgoing connections, which go through `proxy` if one is
        told: see `lattica.path.proxy.proxy_for`.
        """
        self._open_socket = open_socket
        self._proxy = proxy
        self._listener = listener
        self._bound = listener.getsockname() if listener is not None else None
        self._receiver: Receiver | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: dict[VirtualAddress, TcpConnection] = {}
        self._sources: Counter[str] = Counter()  # of accepted connections
        self._next = 1
        self._sweeper: asyncio.TimerHandle | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._counters: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()  # of connections that are no more

    @classmethod
    def bind(cls, address: str = "0.0.0.0:0", *, proxy: str = "") -> Self:
        """A path that listens on `address`, with or without the scheme.

        Raises:
            AddressError: `address` is not an address of this machine.
            PortInUseError: another process holds the port.
        """
        return cls(sockets.bind(text.strip_scheme(address), socket.SOCK_STREAM), proxy=proxy)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others can connect to; none without a listener."""
        if self._listener is None or self._bound is None:
            return ()
        return tuple(
            self.SCHEME + each for each in sockets.reachable(self._bound, self._listener.family)
        )

    @property
    def counters(self) -> Counter[str]:
        return self._counters

    def statistics(self) -> PathStats:
        live = self._connections.values()
        total = self._totals
        return PathStats(
            datagrams_in=total["datagrams_in"],
            bytes_in=total["bytes_in"] + sum(each.bytes_in for each in live),
            reads=total["reads"] + sum(each.reads for each in live),
            datagrams_out=total["datagrams_out"],
            bytes_out=total["bytes_out"] + sum(each.bytes_out for each in live),
            writes=total["writes"] + sum(each.writes for each in live),
            queued=sum(each.queued for each in live),
            receive_buffer=0,  # the kernel sizes them as it sees fit
            send_buffer=0,
            overruns=0,
            coalesced=True,
            segmented=True,
            dropped=dict(self._counters),
        )

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._sweeper = self._loop.call_later(SWEEP, self._sweep)
        if self._listener is not None:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        for timer in (self._sweeper, self._pause):
            if timer is not None:
                timer.cancel()
        if self._listener is not None:
            if self._loop is not None:
                self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
        for connection in tuple(self._connections.values()):
            connection.close()
        self._connections.clear()

    async def resolve(self, address: str) -> VirtualAddress:
        """A new connection's address.

        It connects when something is sent; but where TLS or a proxy lies between, now, so
        that their trouble can be told.
        """
        scheme, where = text.split_scheme(address)
        if scheme != self.SCHEME:
            raise AddressError(f"{address!r} is not of the form {self.SCHEME}host:port")
        host, _ = text.split(where)
        proxy = proxy_for(host, self._proxy)
        chain: list[Wrapping] = [] if proxy is None else [ConnectWrapping(proxy, where)]
        own = self._wrap(host, is_accepted=False)
        if own is not None:
            chain.append(own)
        family, physical = await sockets.look_up(
            where if proxy is None else str(proxy), socket.SOCK_STREAM
        )
        wrapping = Chain(chain) if chain else None
        connection = self._add(
            physical,
            family=family,
            wrapping=wrapping,
            label="" if proxy is None else self.SCHEME + where,
        )
        if wrapping is None:
            return connection.address
        try:
            async with asyncio.timeout(WRAP_TIMEOUT):
                await connection.ready()
        except (WrappingError, TimeoutError) as error:
            self._remove(connection)
            through = "" if proxy is None else f" through the proxy {proxy}"
            reason = str(error) or f"nothing came back in {WRAP_TIMEOUT:g} s"
            raise AddressError(f"{address}{through}: {reason}") from None
        except BaseException:
            self._remove(connection)
            raise
        return connection.address

    def _wrap(self, host: str, *, is_accepted: bool) -> Wrapping | None:
        """What lies between a connection's socket and its frames."""
        del host, is_accepted
        return None

    def send(self, datagrams: Sequence[bytes], address: VirtualAddress) -> None:
        connection = self._connections.get(address)
        if connection is None or connection.is_ended:
            self._counters["sent_nowhere"] += len(datagrams)
            if connection is not None:
                self._refuse_soon(address)
            return
        dropped = connection.send(datagrams)
        self._totals["datagrams_out"] += len(datagrams) - dropped
        if dropped:
            self._counters["send_queue_full"] += dropped

    def spray(self, datagram: bytes, addresses: Sequence[str]) -> None:
        self._counters["sent_nowhere"] += len(addresses)

    def datagram_limit(self, address: VirtualAddress) -> int | None:
        return MAX_FRAME

    def can_probe(self, address: VirtualAddress) -> bool:
        return False  # the stream takes every size

    def window_limit(self, address: VirtualAddress) -> int | None:
        connection = self._connections.get(address)
        if connection is not None and text.is_loopback(connection.physical[0]):
            return LOOPBACK_WINDOW
        return WINDOW

    def describe(self, address: VirtualAddress) -> str:
        connection = self._connections.get(address)
        if connection is None:
            return "forgotten"
        if connection.label:
            return connection.label
        return self.SCHEME + text.join(text.plain(connection.physical[0]), connection.physical[1])

    def hold(self, address: VirtualAddress) -> None:
        connection = self._connections.get(address)
        if connection is not None:
            connection.holds += 1
            connection.expires = float("inf")

    def release(self, address: VirtualAddress) -> None:
        connection = self._connections.get(address)
        if connection is not None and connection.holds > 0:
            connection.holds -= 1
            if connection.holds == 0:
                connection.expires = self._now() + LINGER

    # ----------------------------------------------------- from the connections

    def connection_received(self, connection: TcpConnection, datagrams: list[bytes]) -> None:
        """See `ConnectionOwner`."""
        if self._receiver is None:
            return
        address = connection.address
        self._totals["datagrams_in"] += len(datagrams)
        packets = [(each, address) for each in datagrams if each[0] & QUIC_FIXED_BIT]
        if packets:
            self._receiver.packets_received(packets)
        if len(packets) == len(datagrams) or self._is_closed:
            return
        probes = [(each, address) for each in datagrams if each[0] in OURS]
        if len(packets) + len(probes) < len(datagrams):
            # Over TCP nothing strays in: whoever sends this speaks something else.
            self._counters["garbage"] += 1
            connection.close()
            self.connection_ended(connection, "malformed")
        elif probes:
            self._receiver.probes_received(probes)

    def connection_ended(self, connection: TcpConnection, reason: str) -> None:
        """See `ConnectionOwner`."""
        self._counters[f"connection:{reason}"] += 1
        if connection.holds == 0:
            self._remove(connection)
        else:  # until the link lets go
            self._refuse_soon(connection.address)

    # ------------------------------------------------------------------ inside

    def _now(self) -> float:
        return 0.0 if self._loop is None else self._loop.time()

    def _add(
        self,
        physical: Physical,
        *,
        family: int,
        accepted: socket.socket | None = None,
        wrapping: Wrapping | None = None,
        label: str = "",
    ) -> TcpConnection:
        loop = self._loop or asyncio.get_running_loop()
        address = VirtualAddress(self.SCHEME.rstrip(":"), self._next)
        self._next += 1
        connection = TcpConnection(
            self,
            loop,
            address,
            physical,
            family=family,
            open_socket=self._open_socket,
            accepted=accepted,
            wrapping=wrapping,
            label=label,
            refusal=self.REFUSAL,
        )
        connection.expires = loop.time() + IDLE
        self._connections[address] = connection
        return connection

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(_ACCEPTS):
            try:
                sock, physical = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._counters["accept_failed"] += 1
                if error.errno in _OUT_OF_FILES:
                    self._pause_listening()
                    return
                continue  # the other end has gone again
            source = text.party(physical[0])
            if self._sources.total() >= MAX_ACCEPTED or self._sources[source] >= MAX_PER_SOURCE:
                self._counters["too_many_connections"] += 1
                sock.close()
                continue
            self._sources[source] += 1
            wrapping = self._wrap(physical[0], is_accepted=True)
            self._add(physical, family=sock.family, accepted=sock, wrapping=wrapping)

    def _pause_listening(self) -> None:
        """The listener stays readable: without a pause the loop would do nothing else."""
        assert self._loop is not None
        assert self._listener is not None
        listener = self._listener
        self._loop.remove_reader(listener.fileno())
        self._pause = self._loop.call_later(
            SWEEP, self._loop.add_reader, listener.fileno(), self._accept
        )

    def _remove(self, connection: TcpConnection) -> None:
        connection.close()
        if self._connections.pop(connection.address, None) is None:
            return
        self._totals.update(
            bytes_in=connection.bytes_in,
            bytes_out=connection.bytes_out,
            reads=connection.reads,
            writes=connection.writes,
        )
        if connection.is_accepted:
            source = text.party(connection.physical[0])
            self._sources[source] -= 1
            if not self._sources[source]:
                del self._sources[source]

    def _refuse_soon(self, address: VirtualAddress) -> None:
        # Not from within a send: the caller is in the middle of its own state.
        if self._loop is not None:
            self._loop.call_soon(self._refused, address)

    def _refused(self, address: VirtualAddress) -> None:
        if self._receiver is not None and not self._is_closed:
            self._receiver.path_refused(address)

    def _sweep(self) -> None:
        assert self._loop is not None
        now = self._loop.time()
        for connection in tuple(self._connections.values()):
            if connection.expires <= now:
                self._remove(connection)
        self._sweeper = self._loop.call_later(SWEEP, self._sweep)
