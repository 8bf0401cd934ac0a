"""One socket for IPv4 and IPv6: addresses read as people know them."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import anyio
import pytest

from lattica.path import addresses as text
from lattica.path.interface import VirtualAddress
from lattica.path.udp import UdpPath

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this system has no IPv6"),
]


class Listener:
    """Keeps where packets come from, as people read it."""

    def __init__(self, path: UdpPath) -> None:
        self.path = path
        self.sources: list[str] = []
        self.heard = anyio.Event()

    def packets_received(self, packets: Sequence[tuple[bytes, VirtualAddress]]) -> None:
        self.sources += [self.path.describe(address) for _, address in packets]
        self.heard.set()

    def probes_received(self, probes: Sequence[tuple[bytes, VirtualAddress]]) -> None: ...

    def path_refused(self, address: VirtualAddress) -> None: ...

    def path_too_big(self, address: VirtualAddress, size: int) -> None: ...


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_peer_of_either_family_is_told_by_its_own_address(host: str) -> None:
    both, one = UdpPath.bind("[::]:0"), UdpPath.bind(text.join(host, 0))
    listener = Listener(both)
    both.start(listener)
    one.start(Listener(one))
    try:
        port = text.split(both.addresses[0])[1]
        one.send([b"\x40 hello"], await one.resolve(text.join(host, port)))
        with anyio.fail_after(5):
            await listener.heard.wait()
        assert listener.sources == [one.addresses[0]]
        assert both.describe(await both.resolve(one.addresses[0])) == one.addresses[0]
    finally:
        both.close()
        one.close()


@pytest.mark.parametrize(
    ("host", "plain"),
    [("::ffff:192.0.2.7", "192.0.2.7"), ("192.0.2.7", "192.0.2.7"), ("::ffff:0", "::ffff:0")],
)
def test_only_ipv4_in_disguise_is_undressed(host: str, plain: str) -> None:
    assert text.plain(host) == plain
