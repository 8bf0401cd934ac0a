"""A socket for IPv4 and IPv6 at once in the lab in memory."""

from __future__ import annotations

from lattica.path import addresses as text
from lattica.path.memory import MemoryPath
from tests.netlab.memory_lab import MemoryHost


class DualMemoryPath(MemoryPath):
    """Sends from whichever of the host's addresses is of the target's family."""

    def __init__(self, host: MemoryHost, port: int) -> None:
        self._host = host
        super().__init__(_BothFamilies(host, port), text.join(host.address, port))  # type: ignore[arg-type]
        host.sockets[port] = self

    @property
    def addresses(self) -> tuple[str, ...]:
        port = text.split(self._address)[1]
        hosts = (self._host.address, self._host.address6)
        return tuple(text.join(host, port) for host in hosts if host is not None)


class _BothFamilies:
    def __init__(self, host: MemoryHost, port: int) -> None:
        self._host = host
        self._port = port

    def carry(self, datagram: bytes, source: str, target: str) -> None:
        del source
        is_ipv6 = ":" in text.split(target)[0]
        address = self._host.address6 if is_ipv6 else self._host.address
        if address is not None:
            self._host.carry(datagram, text.join(address, self._port), target)

    def leave(self, address: str) -> None:
        self._host.leave(address)
