"""The lab in memory: what meets whom, by which way, and what happens at run time."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest

from lattica.errors import PortInUseError
from lattica.path.interface import VirtualAddress
from lattica.virtual_loop import VirtualLoop
from tests.netlab import kinds
from tests.netlab.memory_lab import MemoryHost, MemoryLab, MemorySocket
from tests.netlab.nat import TCP, Packet

pytestmark = pytest.mark.anyio
WAIT = 1.0


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


async def seen(sender: MemorySocket, receiver: MemorySocket, to: tuple[str, int] | None = None):
    """The source of a datagram at its receiver; None if it does not arrive."""
    sender.send(b"@hello", to or receiver.address)
    received = await receiver.receive(WAIT)
    return None if received is None else received[1]


async def test_hosts_of_one_site_meet_by_their_inside_addresses() -> None:
    lab = MemoryLab()
    site = lab.site(kinds.SYMMETRIC_RANDOM)
    one, other = lab.host(site).socket(), lab.host(site).socket()
    assert await seen(one, other) == one.address


async def test_the_same_inside_address_in_two_sites_is_two_hosts() -> None:
    lab = MemoryLab()
    one, other = (
        lab.host(lab.site(kinds.PORT_RESTRICTED, lan="192.168.1")).socket(5000) for _ in "12"
    )
    assert one.address == other.address
    assert await seen(one, other) is None


async def test_two_cone_sites_punch_and_two_symmetric_ones_do_not() -> None:
    for kind, works in ((kinds.PORT_RESTRICTED, True), (kinds.SYMMETRIC_RANDOM, False)):
        lab = MemoryLab()
        server = lab.host().socket()
        one, other = (lab.host(lab.site(kind, delay=0.01)).socket() for _ in "12")
        one_seen, other_seen = await seen(one, server), await seen(other, server)
        assert one_seen is not None
        assert other_seen is not None
        assert await seen(one, other, other_seen) is None  # the first only opens the way
        assert (await seen(other, one, one_seen) == other_seen) is works


async def test_homes_behind_one_carrier_meet_by_its_hairpin() -> None:
    lab = MemoryLab()
    server = lab.host().socket()
    first = lab.site(kinds.CARRIER_HOME, delay=0.01)
    second = lab.site(kinds.CARRIER_HOME, behind=first.parent, delay=0.01)
    one, other = lab.host(first).socket(), lab.host(second).socket()
    one_seen, other_seen = await seen(one, server), await seen(other, server)
    assert one_seen is not None
    assert other_seen is not None
    assert one_seen[0] == other_seen[0]
    await seen(one, other, other_seen)
    assert await seen(other, one, one_seen) == other_seen


async def test_a_link_has_its_delay_each_way() -> None:
    lab = MemoryLab()
    server = lab.host(lab.site(delay=0.02)).socket()
    client = lab.host(lab.site(kinds.PORT_RESTRICTED, delay=0.03)).socket()
    before = anyio.current_time()
    await seen(client, server)
    assert anyio.current_time() - before == pytest.approx(0.05, abs=0.001)


async def test_a_link_has_its_loss_and_rate() -> None:
    lab = MemoryLab(seed=5)
    server = lab.host().socket()
    site = lab.site(loss=0.25)
    client = lab.host(site).socket()
    for _ in range(1000):
        client.send(b"@" + bytes(999), server.address)
    arrived = 0
    while await server.receive(WAIT) is not None:
        arrived += 1
    assert 680 < arrived < 820
    site.link.set(loss=0.0, rate=100_000.0)
    before = anyio.current_time()
    for _ in range(100):
        client.send(b"@" + bytes(999), server.address)
    for _ in range(100):
        assert await server.receive(WAIT) is not None
    assert anyio.current_time() - before == pytest.approx(1.0, abs=0.02)


async def test_a_rebooted_box_has_forgotten_and_has_another_address() -> None:
    lab = MemoryLab()
    server = lab.host().socket()
    site = lab.site(kinds.FULL_CONE)
    client = lab.host(site).socket(5000)
    before = await seen(client, server)
    assert before is not None
    site.reboot("new")
    assert await seen(server, client, before) is None
    after = await seen(client, server)
    assert after is not None
    assert after[0] == site.address != before[0]
    assert await seen(server, client, after) == server.address
    site.reboot()
    assert await seen(server, client, after) is None


async def test_a_cut_site_is_silent_also_for_what_is_under_way() -> None:
    lab = MemoryLab()
    server = lab.host().socket()
    site = lab.site(delay=0.1)
    client = lab.host(site).socket()
    client.send(b"@hello", server.address)
    await anyio.sleep(0.05)
    site.blackout(2.0)
    assert await server.receive(WAIT) is None
    assert await seen(server, client) is None
    await anyio.sleep(1.0)
    assert await seen(client, server) is not None


async def test_a_partition_parts_two_sites_only() -> None:
    lab = MemoryLab()
    one, other = lab.site(), lab.site(kinds.FULL_CONE)
    here, there, third = lab.host(one).socket(), lab.host(other).socket(), lab.host().socket()
    lab.topology.partition(one, other)
    assert await seen(there, here) is None
    assert await seen(there, third) is not None
    lab.topology.heal(one, other)
    assert await seen(there, here) is not None


async def test_a_host_moves_with_its_sockets() -> None:
    lab = MemoryLab()
    server = lab.host().socket()
    old, new = lab.site(kinds.PORT_RESTRICTED), lab.site(kinds.SYMMETRIC_RANDOM)
    host = lab.host(old)
    client = host.socket()
    before = await seen(client, server)
    host.move(new)
    after = await seen(client, server)
    assert before is not None
    assert after is not None
    assert (before[0], after[0]) == (old.address, new.address)
    assert await seen(server, client, before) is None
    assert await seen(server, client, after) == server.address


async def test_udp_is_blocked_and_tcp_is_not() -> None:
    lab = MemoryLab()
    server = lab.host()
    sock = server.socket(443)
    client = lab.host(lab.site(kinds.TCP_443_ONLY))
    assert await seen(client.socket(6000), sock) is None
    client.send(Packet((client.address, 6000), sock.address, TCP), b"syn")
    assert await sock.receive(WAIT) is not None
    client.send(Packet((client.address, 6000), (server.address, 80), TCP), b"syn")
    await anyio.sleep(WAIT)
    assert client.site.counters["blocked"] == 2


async def test_ipv6_is_not_translated_but_firewalled() -> None:
    lab = MemoryLab()
    server, client = (
        lab.host(lab.site(each, ipv6=True)) for each in (kinds.PUBLIC, kinds.FULL_CONE)
    )
    here, there = server.socket(5000), client.socket(5000)
    assert server.address6 is not None
    assert client.address6 is not None
    inward = Packet((server.address6, 5000), (client.address6, 5000))
    server.send(inward, b"@in")
    assert await there.receive(WAIT) is None
    client.send(Packet(*reversed(inward[:2])), b"@out")
    assert await here.receive(WAIT) == (b"@out", (client.address6, 5000))
    server.send(inward, b"@in")
    assert await there.receive(WAIT) == (b"@in", (server.address6, 5000))


class Inbox:
    """A path's receiver."""

    def __init__(self) -> None:
        self.packets: list[tuple[bytes, VirtualAddress]] = []

    def packets_received(self, packets: Sequence[tuple[bytes, VirtualAddress]]) -> None:
        self.packets += packets


def started(host: MemoryHost, port: int = 0):
    path, inbox = host.path(port), Inbox()
    path.start(inbox)  # type: ignore[arg-type]
    return path, inbox


async def test_a_peers_path_sends_through_the_box_and_moves_with_its_host() -> None:
    lab = MemoryLab()
    server, arrived = started(lab.host(), 1)
    host = lab.host(lab.site(kinds.PORT_RESTRICTED))
    client, answers = started(host, 4242)
    address = await client.resolve(server.addresses[0])
    client.send([b"@question"], address)
    await anyio.sleep(WAIT)
    [(data, source)] = arrived.packets
    assert data == b"@question"
    assert server.describe(source) == f"{host.site.address}:4242"
    server.send([b"@answer"], source)
    await anyio.sleep(WAIT)
    assert answers.packets == [(b"@answer", address)]
    with pytest.raises(PortInUseError, match="4242"):
        host.path(4242)
    host.move(lab.site(kinds.PORT_RESTRICTED))
    client.send([b"@again"], address)
    await anyio.sleep(WAIT)
    assert server.describe(arrived.packets[-1][1]) == f"{host.site.address}:4242"
    client.close()
    host.path(4242)
