"""What kind of NAT a host is behind, found from outside with plain datagrams (RFC 4787).

Works on either lab: it needs sockets inside, and two public hosts with two sockets each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from itertools import pairwise
from typing import Any, Protocol

import msgspec

from tests.netlab.kinds import Kind
from tests.netlab.nat import BLOCK, LOWEST_PORT, Address, Dependence, Ports

PORTS = (47_001, 31_017, 52_345, 20_202, 61_616, 10_007, 40_503, 33_333)  # of inside sockets


class Socket(Protocol):
    """A datagram socket of a lab."""

    address: Address

    def send(self, data: bytes, target: Address) -> None: ...

    async def receive(self, timeout: float) -> tuple[bytes, Address] | None: ...

    def close(self) -> None: ...


class Servers(msgspec.Struct, frozen=True):
    """Sockets on public hosts: two ports of one address, and one of another."""

    first: Socket
    same_address: Socket
    elsewhere: Socket


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """How a box behaves."""

    reachable: bool  # datagrams go out at all
    translated: bool = False
    mapping: Dependence | None = None
    filtering: Dependence | None = None
    ports: Ports | None = None
    hairpin: bool = False

    @classmethod
    def of(cls, kind: Kind) -> Findings:
        """What must be found where the kind is what it says."""
        if not kind.policy.udp:
            return cls(reachable=False)
        layers = [each for each in (kind.home, kind.carrier) if each is not None]
        return cls(
            reachable=True,
            translated=bool(layers),
            mapping=kind.mapping,
            filtering=kind.filtering,
            ports=kind.ports,
            hairpin=bool(layers) and layers[-1].hairpin,
        )


class Classifier:
    """One classification. `bind` makes a socket inside with a certain port.

    `wait` is how long a datagram may take, in seconds; what has not come then never comes.
    """

    def __init__(
        self, bind: Callable[[int], Awaitable[Socket]], servers: Servers, *, wait: float
    ) -> None:
        self._bind = bind
        self._servers = servers
        self._wait = wait

    async def run(self) -> Findings:
        """All tests but the time-out, which takes as long as it is."""
        sock = await self._bind(PORTS[0])
        try:
            seen = await self.observed(sock, self._servers.first)
            if seen is None:
                return Findings(reachable=False)
            mapping = await self._mapping(sock, seen)
        finally:
            sock.close()
        return Findings(
            reachable=True,
            translated=seen[0] != sock.address[0],
            mapping=mapping,
            filtering=await self._filtering(),
            ports=await self._ports(),
            hairpin=await self._hairpin(),
        )

    async def observed(self, sock: Socket, server: Socket) -> Address | None:
        """Where a datagram from `sock` seems to come from; None if it does not arrive."""
        token = b"@%d %d" % (id(sock), id(server))
        sock.send(token, server.address)
        while (received := await server.receive(self._wait)) is not None:
            if received[0] == token:
                return received[1]
        return None

    async def lifetime(self, ages: Sequence[float]) -> tuple[float, float]:
        """The greatest age in seconds at which an idle mapping was alive, the least it was not.

        Every age has a socket of its own, so all are tried at once.
        """
        alive = await asyncio.gather(
            *[await self._open(port, age) for port, age in zip(PORTS, ages, strict=False)]
        )
        lived = max((age for age, is_alive in zip(ages, alive, strict=True) if is_alive), default=0)
        died = [age for age, is_alive in zip(ages, alive, strict=True) if not is_alive]
        return lived, min(died, default=float("inf"))

    async def _open(self, port: int, age: float) -> Coroutine[Any, Any, bool]:
        """Make a mapping; what is returned tells whether it lives at that age."""
        sock = await self._bind(port)
        seen = await self.observed(sock, self._servers.first)
        assert seen is not None, "nothing came out"
        return self._lives(sock, seen, asyncio.get_running_loop().time() + age)

    async def _lives(self, sock: Socket, seen: Address, at: float) -> bool:
        await asyncio.sleep(at - asyncio.get_running_loop().time())
        alive = await self._passes(self._servers.first, seen, sock)
        sock.close()
        return alive

    async def _mapping(self, sock: Socket, first: Address) -> Dependence:
        if await self.observed(sock, self._servers.same_address) != first:
            return Dependence.ADDRESS_AND_PORT
        if await self.observed(sock, self._servers.elsewhere) != first:
            return Dependence.ADDRESS
        return Dependence.ENDPOINT_INDEPENDENT

    async def _filtering(self) -> Dependence:
        sock = await self._bind(PORTS[1])
        try:
            seen = await self.observed(sock, self._servers.first)
            assert seen is not None, "nothing came out"
            if await self._passes(self._servers.elsewhere, seen, sock):
                return Dependence.ENDPOINT_INDEPENDENT
            if await self._passes(self._servers.same_address, seen, sock):
                return Dependence.ADDRESS
            assert await self._passes(self._servers.first, seen, sock), "not even replies pass"
            return Dependence.ADDRESS_AND_PORT
        finally:
            sock.close()

    async def _passes(self, server: Socket, seen: Address, sock: Socket) -> bool:
        server.send(b"@in", seen)
        return await sock.receive(self._wait) is not None

    async def _ports(self) -> Ports:
        made: list[Socket] = []
        outside: list[int] = []
        try:
            for port in PORTS:
                made.append(await self._bind(port))
                seen = await self.observed(made[-1], self._servers.first)
                assert seen is not None, "nothing came out"
                outside.append(seen[1])
        finally:
            for each in made:
                each.close()
        if outside == list(PORTS):
            return Ports.PRESERVE
        if all(0 < after - before <= 2 for before, after in pairwise(outside)):
            return Ports.SEQUENTIAL
        blocks = {(port - LOWEST_PORT) // BLOCK for port in outside}
        return Ports.BLOCK if len(blocks) == 1 else Ports.RANDOM

    async def _hairpin(self) -> bool:
        one, other = await self._bind(PORTS[2]), await self._bind(PORTS[3])
        try:
            one_seen = await self.observed(one, self._servers.first)
            other_seen = await self.observed(other, self._servers.first)
            assert one_seen is not None
            assert other_seen is not None
            if one_seen == one.address:
                return False  # nothing is translated, so nothing turns round
            one.send(b"@open", other_seen)
            other.send(b"@hairpin", one_seen)
            received = await one.receive(self._wait)
            return received == (b"@hairpin", other_seen)
        finally:
            one.close()
            other.close()
