"""How long a router remembers is found out, by calls to nobody but who asked for them."""

from __future__ import annotations

import anyio
import pytest

from lattica.errors import LatticaError
from lattica.reach.messages import SERVICE
from lattica.reach.service import ReachService
from lattica.reach.silence import PACKETS
from lattica.virtual_loop import VirtualLoop
from tests.netlab.kinds import PORT_RESTRICTED, PUBLIC, Kind
from tests.netlab.memory_lab import MemoryLab
from tests.netlab.nat import Dependence, Packet, Ports, Translation
from tests.reach.peers import lab_host, lab_peer, lab_relays, ready, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


@pytest.mark.parametrize("mapping", [Dependence.ENDPOINT_INDEPENDENT, Dependence.ADDRESS_AND_PORT])
@pytest.mark.parametrize(
    ("timeout", "found"), [(8.0, 0), (15.0, 12), (30.0, 20), (100.0, 80), (300.0, 180)]
)
async def test_a_report_tells_the_longest_silence_survived(
    timeout: float, found: int, mapping: Dependence
) -> None:
    home = Kind(
        home=Translation(
            mapping=mapping,
            filtering=Dependence.ADDRESS_AND_PORT,
            ports=Ports.RANDOM,
            timeout=timeout,
        )
    )
    lab = MemoryLab(seed=8)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, home), "a", relays=relays) as a,
    ):
        await ready(a)
        assert a.path.extra is not None
        most = 0
        with anyio.move_on_after(600.0):
            while True:
                most = max(most, len(a.path.extra))
                await anyio.sleep(0.5)
        assert a.reach.report.lifetime == found
        assert most == 1
        assert len(a.path.extra) == 0


async def test_a_relay_calls_no_port_that_has_not_knocked_and_nobody_often() -> None:
    lab = MemoryLab(seed=8)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "a", relays=relays) as a,
        lab_peer(lab_host(lab, PUBLIC), "b", relays=relays) as victim,
    ):
        await ready(a, victim)
        relay = relays[0]
        await a.dial(relay)
        heard: list[Packet] = []
        arrived = victim.host.arrived

        def tap(packet: Packet, data: bytes) -> None:
            if packet.target[1] != 4242:
                heard.append(packet)
            arrived(packet, data)

        victim.host.arrived = tap  # type: ignore[method-assign]
        stub = a.rpc.client(relay.id, ReachService, SERVICE, timeout=5.0)
        steering = a.link(relay).steering
        assert steering is not None
        refused = 0
        for _ in range(20):
            knock = steering.knock()
            assert knock is not None
            forged = Packet((victim.host.address, 999), (relay.host.address, 4242))
            victim.host.send(forged, knock)  # an authentic knock, as if the victim had sent it
            await anyio.sleep(0.05)
            try:
                await stub.call()
            except LatticaError:
                refused += 1
        assert refused >= 19  # the one that may pass is of a's own measurement
        assert not heard
        assert relay.reach.counters["call:refused"] == refused


async def test_a_call_that_was_lost_once_is_not_believed_but_heeded() -> None:
    """Links are heard of more often until a second look shows that the router still remembers."""
    lab = MemoryLab(seed=8)
    home = Kind(home=Translation(filtering=Dependence.ADDRESS_AND_PORT, timeout=60.0))
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, home), "a", relays=relays) as a,
    ):
        await ready(a)
        calls = 0
        arrived = a.host.arrived

        def tap(packet: Packet, data: bytes) -> None:
            nonlocal calls
            if packet.target[1] != 4242:
                calls += 1
                if calls <= PACKETS:
                    return
            arrived(packet, data)

        a.host.arrived = tap  # type: ignore[method-assign]
        observer = a.reach.candidates.observer
        await until(lambda: observer.safe_silence < 12.0, 60.0)
        assert calls == PACKETS
        await until(lambda: observer.safe_silence == float("inf"), 60.0)
        await anyio.sleep(400.0)
        assert a.reach.report.lifetime == 40
