"""Whose a packet's source is, at a price that does not grow with the links."""

from __future__ import annotations

import anyio
import pytest

from lattica.link.quic_link import QuicLink
from lattica.path.interface import VirtualAddress
from lattica.reach.legs import Legs
from lattica.virtual_loop import VirtualLoop
from tests.netlab.kinds import PORT_RESTRICTED, PUBLIC
from tests.netlab.memory_lab import MemoryLab
from tests.reach.peers import ReachPeer, lab_host, lab_peer, lab_relays, ready, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def legs(peer: ReachPeer) -> Legs:
    return peer.reach._legs


def places(link: QuicLink) -> set[VirtualAddress]:
    assert link.steering is not None
    assert link.steering.ways is not None
    return {way.address for way in link.steering.ways.all}


async def test_every_way_of_an_open_link_is_its_peers_until_it_is_left() -> None:
    lab = MemoryLab(seed=4)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "a", relays=relays) as a,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "b", relays=relays) as b,
    ):
        await ready(a, b)
        await a.dial(b)
        link = a.link(b)
        seen = places(link)
        with anyio.move_on_after(30.0):  # the relay's way is left when a direct one has taken over
            while True:
                seen |= places(link)
                assert all(legs(a).whose(each) == b.id for each in places(link))
                await anyio.sleep(0.01)
        left = seen - places(link)
        assert left
        assert all(legs(a).whose(each) is None for each in left)
        last = places(link)
        link.close()
        await until(lambda: a.endpoint.find(b.id) is None, 5.0)
        assert all(legs(a).whose(each) is None for each in last)


async def test_a_link_is_not_looked_at_for_a_strangers_packet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A flood from forged sources costs the same with one link as with a thousand."""
    lab = MemoryLab(seed=4)
    attacker = lab.host(lab.site(PUBLIC)).socket()
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "a", relays=relays) as a,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "b", relays=relays) as b,
    ):
        await ready(a, b)
        relay = relays[0]
        looks: list[str] = []
        for link in relay.endpoint.current():
            assert isinstance(link, QuicLink)
            assert link.steering is not None
            has = link.steering.has
            monkeypatch.setattr(
                link.steering, "has", lambda address, has=has: looks.append("") or has(address)
            )
        target = (relay.host.address, 4242)
        before = relay.reach.counters["relay:stranger"]
        for number in range(500):
            attacker.send(b"\x07" + number.to_bytes(8, "big") + bytes(50), target)
        await anyio.sleep(1.0)
        assert relay.reach.counters["relay:stranger"] - before == 500
        assert not looks
        await a.check_transfer(relay)
