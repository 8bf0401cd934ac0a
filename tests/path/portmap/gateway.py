"""A router in a test's own words: PCP and NAT-PMP after their RFCs, by hand, with faults."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable

from lattica.path.portmap.network import Receive, Route

GATEWAY, LOCAL, OUTSIDE = "192.168.77.1", "192.168.77.2", "5.5.5.5"
SERVER = (GATEWAY, 5351)
WAY = Route(GATEWAY, LOCAL)
TRANSPORTS = {1: 17, 2: 6}  # NAT-PMP's opcodes, IP's protocol numbers


def packed(host: str) -> bytes:
    return bytes(10) + b"\xff\xff" + ipaddress.IPv4Address(host).packed


class Gateway:
    """Answers one datagram with one, or none. Times in seconds."""

    def __init__(self, clock: Callable[[], float], *, pcp: bool = True, natpmp: bool = True):
        self.clock = clock
        self.pcp = pcp
        self.natpmp = natpmp
        self.outside = OUTSIDE
        self.granted = 3600  # seconds at most
        self.refuse: dict[int, int] = {}  # by IP's protocol number: the result
        self.is_silent = False
        self.heard: list[bytes] = []
        self.mapped: dict[tuple[int, int], int] = {}  # protocol and port inside: port outside
        self.taken: dict[int, int] = {}  # ports outside that are given as others
        self._nonces: dict[tuple[int, int], bytes] = {}
        self._born = clock()

    def reboot(self) -> None:
        """Forget everything."""
        self._born = self.clock()
        self.mapped.clear()
        self._nonces.clear()

    def answer(self, data: bytes) -> bytes | None:
        self.heard.append(data)
        if self.is_silent:
            return None
        if data[0] == 0:
            return self._natpmp(data) if self.natpmp else None
        if self.pcp:
            return self._pcp(data)
        # A router that knows only NAT-PMP: RFC 6886 §3.5.
        return struct.pack(">BBHI", 0, 0x80 | data[1], 1, self.epoch) if self.natpmp else None

    @property
    def epoch(self) -> int:
        return int(self.clock() - self._born)

    def _pcp(self, data: bytes) -> bytes:
        assert data[0] == 2
        assert data[8:24] == packed(LOCAL)
        lifetime = int.from_bytes(data[4:8], "big")
        if data[1] == 0:
            assert len(data) == 24
            return struct.pack(">BBBBII12x", 2, 0x80, 0, 0, 0, self.epoch)
        assert data[1] == 1
        assert len(data) == 60
        nonce, protocol, inside, wish = data[24:36], data[36], *struct.unpack(">HH", data[40:44])
        key = (protocol, inside)
        if self._nonces.setdefault(key, nonce) != nonce:  # another host's
            return self._pcp_map(data, 2, 300, wish)
        result = self.refuse.get(protocol, 0)
        if result:
            return self._pcp_map(data, result, 300, wish)
        return self._pcp_map(data, 0, *self._grant(key, lifetime, wish))

    def _pcp_map(self, data: bytes, result: int, lifetime: int, outside: int) -> bytes:
        header = struct.pack(">BBBBII12x", 2, 0x81, 0, result, lifetime, self.epoch)
        return header + data[24:42] + struct.pack(">H", outside) + packed(self.outside)

    def _natpmp(self, data: bytes) -> bytes:
        opcode = data[1]
        if opcode == 0:
            assert len(data) == 2
            outside = ipaddress.IPv4Address(self.outside).packed
            return struct.pack(">BBHI", 0, 0x80, 0, self.epoch) + outside
        assert len(data) == 12
        inside, wish, lifetime = struct.unpack(">HHI", data[4:])
        result = self.refuse.get(TRANSPORTS[opcode], 0)
        head = struct.pack(">BBHI", 0, 0x80 | opcode, result, self.epoch)
        if result:
            return head
        granted, outside = self._grant((TRANSPORTS[opcode], inside), lifetime, wish)
        return head + struct.pack(">HHI", inside, outside, granted)

    def _grant(self, key: tuple[int, int], lifetime: int, wish: int) -> tuple[int, int]:
        """What lifetime, and which port."""
        if not lifetime:
            self.mapped.pop(key, None)
            self._nonces.pop(key, None)
            return 0, 0
        outside = self.mapped.setdefault(key, self.taken.get(wish, wish))
        return min(lifetime, self.granted), outside


class FakeNetwork:
    """See `lattica.path.portmap.network.Network`: everything goes to a `Gateway`, or nowhere."""

    def __init__(self, gateway: Gateway, way: Route | None = WAY) -> None:
        self.gateway = gateway
        self.way = way
        self.sent: list[tuple[bytes, tuple[str, int]]] = []
        self.opened = 0
        self.announce: Receive | None = None

    def route(self) -> Route | None:
        return self.way

    async def open(self, local: str, receive: Receive) -> FakeSocket:
        assert self.way is not None
        assert local == self.way.local
        self.opened += 1
        return FakeSocket(self, receive)

    async def announcements(self, local: str, receive: Receive) -> FakeSocket:
        self.announce = receive
        return FakeSocket(self, receive)


class FakeSocket:
    def __init__(self, network: FakeNetwork, receive: Receive) -> None:
        self._network = network
        self._receive = receive
        self._closed = False

    def send(self, data: bytes, address: tuple[str, int]) -> None:
        assert not self._closed
        self._network.sent.append((data, address))
        if address == SERVER:
            answer = self._network.gateway.answer(data)
            if answer is not None:
                self._receive(answer, SERVER)

    def close(self) -> None:
        self._closed = True
