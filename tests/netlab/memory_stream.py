"""TCP in the lab in memory: datagrams that boxes see as packets of one TCP connection.

Only what matters to a NAT is played: who sends first, and which ports pass. Streams themselves
are tried on real sockets in the real lab.
"""

from __future__ import annotations

from collections.abc import Sequence

from lattica.path import addresses as text
from lattica.path.interface import VirtualAddress
from lattica.path.memory import MemoryPath
from lattica.path.routes import Routes
from tests.netlab.memory_lab import MemoryHost
from tests.netlab.nat import TCP, Packet


class MemoryStreamPath(MemoryPath):
    """A carrier with the prefix `tcp:`. Others can dial it if it listens."""

    def __init__(self, host: MemoryHost, port: int, *, is_listening: bool) -> None:
        super().__init__(_TcpNetwork(host), text.join(host.address, port))  # type: ignore[arg-type]
        self._routes = Routes("tcp")
        self._is_listening = is_listening
        host.sockets[port] = self

    @property
    def addresses(self) -> tuple[str, ...]:
        return (text.TCP + self._address,) if self._is_listening else ()

    async def resolve(self, address: str) -> VirtualAddress:
        return await super().resolve(text.strip_scheme(address))

    def describe(self, address: VirtualAddress) -> str:
        return text.TCP + super().describe(address)

    def can_probe(self, address: VirtualAddress) -> bool:
        return False

    def spray(self, datagram: bytes, addresses: Sequence[str]) -> None:
        raise AssertionError("nobody guesses over TCP")


class _TcpNetwork:
    def __init__(self, host: MemoryHost) -> None:
        self._host = host

    def carry(self, datagram: bytes, source: str, target: str) -> None:
        self._host.send(Packet(text.split(source), text.split(target), TCP), datagram)

    def leave(self, address: str) -> None:
        self._host.leave(address)
