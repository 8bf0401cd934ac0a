"""Who lies, floods or replays is counted and changes nothing for others."""

from __future__ import annotations

import os

import anyio
import msgspec
import pytest

from lattica.errors import BusyError
from lattica.path.interface import PROBE, PROBE_REPLY
from lattica.reach.messages import SERVICE, News, Order
from lattica.reach.plan import plan
from lattica.reach.report import Mapping, NatReport, Ports
from lattica.reach.service import ReachService
from lattica.virtual_loop import VirtualLoop
from tests.netlab.kinds import PORT_RESTRICTED, PUBLIC, SYMMETRIC_RANDOM
from tests.netlab.memory_lab import MemoryLab, MemorySocket
from tests.netlab.nat import Packet
from tests.reach.peers import LabPeer, lab_host, lab_peer, lab_relays, ready, until
from tests.reach.test_matrix import is_relayed

pytestmark = pytest.mark.anyio
FEW = 12  # packets of one attempt, at most, to a host that is only somebody's word


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Victim:
    """A host that takes no part, and counts what it gets."""

    def __init__(self, lab: MemoryLab) -> None:
        self.host = lab.host(lab.site(PUBLIC))
        self.packets = 0
        self.bytes = 0
        self.host.arrived = self._arrived  # type: ignore[method-assign]

    def address(self, port: int = 53) -> str:
        return f"{self.host.address}:{port}"

    def _arrived(self, packet: Packet, data: bytes) -> None:
        self.packets += 1
        self.bytes += len(data)


def lie(peer: LabPeer, victim: Victim, report: NatReport) -> None:
    """Have a peer tell of a victim's addresses as its own."""
    ports = range(1000, 1012)
    news = News(tuple(map(victim.address, ports)), (), (victim.host.address,), report)
    peer.reach.candidates.news = lambda: news  # type: ignore[method-assign]


@pytest.mark.parametrize("is_liar_dialing", [True, False])
@pytest.mark.parametrize("kind", [PORT_RESTRICTED, SYMMETRIC_RANDOM])
@pytest.mark.parametrize("is_guessed", [True, False])
async def test_a_victims_address_gets_a_few_small_packets(
    is_liar_dialing: bool, is_guessed: bool, kind: str
) -> None:
    """Also where thousands of its ports would have to be guessed, or sent to from many sockets."""
    lab = MemoryLab(seed=5)
    victim = Victim(lab)
    report = NatReport(public=(victim.address(),))
    if is_guessed:
        report = msgspec.structs.replace(report, mapping=Mapping.DEPENDENT, ports=Ports.RANDOM)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, SYMMETRIC_RANDOM), "liar", relays=relays) as liar,
        lab_peer(lab_host(lab, kind), "b", relays=relays) as b,
    ):
        await ready(liar, b)
        lie(liar, victim, report)
        await (liar.dial(b) if is_liar_dialing else b.dial(liar))
        await anyio.sleep(60.0)
        print(f"{victim.packets} packets, {victim.bytes} bytes")
        attempts = 4  # at once, after 5 s, 15 more and 45 more, each 20 % sooner or later
        assert 0 < victim.packets <= FEW * attempts
        assert victim.bytes < 4_000
        await b.check_transfer(liar)


async def test_orders_that_come_together_are_one_attempt() -> None:
    lab = MemoryLab(seed=5)
    victim = Victim(lab)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, SYMMETRIC_RANDOM), "liar", relays=relays) as liar,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "b", relays=relays) as b,
    ):
        await ready(liar, b)
        lie(liar, victim, NatReport(public=(victim.address(),)))
        await liar.dial(b)
        await anyio.sleep(4.0)  # between two of the liar's usual attempts
        before, taken = victim.packets, 0
        stub = liar.rpc.client(b.id, ReachService, SERVICE, timeout=5.0)
        news = liar.reach.candidates.news()
        order = Order(plan(news.report, b.reach.report), news)

        async def punch() -> None:
            nonlocal taken
            try:
                await stub.punch(order)
                taken += 1
            except BusyError:
                pass

        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(punch)
        await anyio.sleep(1.0)
        assert taken == 1
        assert victim.packets - before <= FEW


async def test_a_flood_of_probes_and_frames_costs_no_calls() -> None:
    lab = MemoryLab(seed=5)
    attacker = lab.host(lab.site(PUBLIC)).socket()
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, PUBLIC), "a", relays=relays) as a,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "b", relays=relays) as b,
    ):
        await ready(b)
        await b.dial(a)
        link = b.link(a)
        target = (a.host.address, 4242)
        before = sum(a.endpoint.counters.values())
        for _ in range(2000):
            attacker.send(bytes((PROBE,)) + os.urandom(70), target)
            attacker.send(bytes((PROBE_REPLY,)) + os.urandom(70), target)
            attacker.send(b"\x07" + os.urandom(200), target)
        await b.check_transfer(a)
        assert b.link(a) is link
        assert sum(a.endpoint.counters.values()) - before >= 4000
        assert a.reach.forwarder.statistics().waiting == 0
        assert await attacker.receive(5.0) is None


async def test_packets_with_a_stolen_source_move_no_link() -> None:
    """Copies of real packets, sent again from elsewhere, and from the right address too."""
    lab = MemoryLab(seed=5)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "a", relays=relays) as a,
        lab_peer(lab_host(lab, PUBLIC), "b", relays=relays) as b,
    ):
        await ready(a)
        seen: list[tuple[Packet, bytes]] = []
        arrived = b.host.arrived

        def tap(packet: Packet, data: bytes) -> None:
            seen.append((packet, data))
            arrived(packet, data)

        b.host.arrived = tap  # type: ignore[method-assign]
        await a.dial(b)
        await a.check_transfer(b)
        where = b.link(a).address
        thief = lab.host(lab.site(PUBLIC))
        heard = _listen(thief.socket(5000))
        for packet, data in seen[-1000:]:
            thief.send(Packet((thief.address, 5000), packet.target), data)
            thief.send(packet, data)
        await anyio.sleep(5.0)
        await a.check_transfer(b)
        assert b.link(a).address == where
        steering = b.link(a).steering
        assert steering is not None
        assert steering.ways is not None
        assert thief.address not in str([b.link(a).path_of(w.address) for w in steering.ways.all])
        assert not heard


async def test_a_relay_tells_only_of_those_who_talk_through_it() -> None:
    lab = MemoryLab(seed=5)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, SYMMETRIC_RANDOM), "a", relays=relays) as a,
        lab_peer(lab_host(lab, SYMMETRIC_RANDOM), "b", relays=relays) as b,
        lab_peer(lab_host(lab, SYMMETRIC_RANDOM), "c", relays=relays) as c,
    ):
        await ready(a, b, c)
        await a.dial(b)
        await until(lambda: is_relayed(a, b), 5.0)
        relay = next(each for each in relays if str(each.id) in a.link(b).address)
        assert relay.reach.seen(a.id, b.id).hosts == (b.host.site.address,)
        with pytest.raises(Exception, match="no session joins"):
            relay.reach.seen(c.id, b.id)


def _listen(socket: MemorySocket) -> list[bytes]:
    heard: list[bytes] = []
    socket.handler = lambda data, source: heard.append(data)
    return heard
