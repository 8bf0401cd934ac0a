"""Links outlive their paths: no call is lost or run twice, whatever happens to the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from lattica.virtual_loop import VirtualLoop
from tests.netlab.kinds import PORT_RESTRICTED, PUBLIC, SYMMETRIC_RANDOM
from tests.netlab.memory_lab import MemoryLab
from tests.reach.load import load
from tests.reach.peers import ACCESS, LabPeer, lab_host, lab_peer, lab_relays, ready, until
from tests.reach.test_matrix import is_relayed

pytestmark = pytest.mark.anyio
ON_A_CUT = 2.5  # seconds, the longest gap between answers
ON_UPGRADE = 0.3


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class World:
    """Two peers, their relays, and the lab that they are in."""

    def __init__(self, lab: MemoryLab, relays: list[LabPeer], a: LabPeer, b: LabPeer) -> None:
        self.lab = lab
        self.relays = relays
        self.a = a
        self.b = b

    async def direct(self) -> None:
        """Link the two, and wait until no relay stands between."""
        await self.a.dial(self.b)
        await until(lambda: not is_relayed(self.a, self.b), 10.0)

    @property
    def relay_in_use(self) -> LabPeer:
        where = self.a.link(self.b).address
        return next(each for each in self.relays if str(each.id) in where)


@asynccontextmanager
async def world(one: str = PORT_RESTRICTED, other: str = PORT_RESTRICTED) -> AsyncIterator[World]:
    lab = MemoryLab(seed=2)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, one), "a", relays=relays) as a,
        lab_peer(lab_host(lab, other), "b", relays=relays) as b,
    ):
        await ready(a, b)
        yield World(lab, relays, a, b)


async def test_from_a_relay_to_a_direct_way() -> None:
    async with world() as w:
        await w.a.dial(w.b)
        assert is_relayed(w.a, w.b)
        link = w.a.link(w.b)
        async with load(w.a, w.b, 5.0) as made:
            await until(lambda: not is_relayed(w.a, w.b), 5.0)
        made.check()
        assert made.gap() < ON_UPGRADE
        assert w.a.link(w.b) is link


@pytest.mark.parametrize("settled", [0.0, 120.0])
async def test_from_a_direct_way_to_a_relay(settled: float) -> None:
    """Also when the relay has long been told that it is not needed any more."""
    async with world() as w:
        await w.direct()
        await anyio.sleep(settled)
        assert (w.a.path.relay.is_idle and w.b.path.relay.is_idle) is (settled > 0.0)
        link = w.a.link(w.b)
        async with load(w.a, w.b, 10.0) as made:
            await anyio.sleep(2.0)
            w.lab.topology.partition(w.a.host.site, w.b.host.site)
            await until(lambda: is_relayed(w.a, w.b), 5.0)
        made.check()
        print(f"gap {made.gap():.2f} s")
        assert made.gap() < ON_A_CUT
        assert w.a.link(w.b) is link


async def test_from_a_relay_that_dies_to_another() -> None:
    async with world(SYMMETRIC_RANDOM, SYMMETRIC_RANDOM) as w:
        await w.a.dial(w.b)
        link, first = w.a.link(w.b), w.relay_in_use
        async with load(w.a, w.b, 10.0) as made:
            await anyio.sleep(2.0)
            first.host.site.cut()
            await until(lambda: w.relay_in_use is not first, 5.0)
        made.check()
        print(f"gap {made.gap():.2f} s")
        assert made.gap() < ON_A_CUT
        assert w.a.link(w.b) is link


@pytest.mark.parametrize("which", ["dialer", "acceptor"])
async def test_a_router_that_starts_anew_with_another_address(which: str) -> None:
    async with world() as w:
        await w.direct()
        link = w.a.link(w.b)
        site = (w.a if which == "dialer" else w.b).host.site
        async with load(w.a, w.b, 10.0) as made:
            await anyio.sleep(2.0)
            site.reboot("new")
        made.check()
        print(f"gap {made.gap():.2f} s")
        assert made.gap() < ON_A_CUT
        assert w.a.link(w.b) is link
        await until(lambda: not is_relayed(w.a, w.b), 30.0)


@pytest.mark.parametrize("kind", [PUBLIC, PORT_RESTRICTED])
async def test_a_peer_that_goes_to_another_network(kind: str) -> None:
    async with world() as w:
        await w.direct()
        link = w.a.link(w.b)
        async with load(w.a, w.b, 10.0) as made:
            await anyio.sleep(2.0)
            w.a.host.move(w.lab.site(kind, delay=ACCESS))
        made.check()
        print(f"gap {made.gap():.2f} s")
        assert made.gap() < ON_A_CUT
        assert w.a.link(w.b) is link
        await until(lambda: not is_relayed(w.a, w.b), 30.0)


async def test_a_line_that_loses_ipv6() -> None:
    """With IPv4 alone these two need a relay; with IPv6 their firewalls open to each other."""
    lab = MemoryLab(seed=2)
    site_a, site_b = (lab.site(SYMMETRIC_RANDOM, ipv6=True, delay=ACCESS) for _ in range(2))
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab.host(site_a), "a", relays=relays) as a,
        lab_peer(lab.host(site_b), "b", relays=relays) as b,
    ):
        await ready(a, b)
        await a.dial(b)
        await until(lambda: a.link(b).address.startswith("[2001:db8:"), 10.0)
        link = a.link(b)
        async with load(a, b, 10.0) as made:
            await anyio.sleep(2.0)
            a.host.lose_ipv6()
            await until(lambda: is_relayed(a, b), 5.0)
        made.check()
        print(f"gap {made.gap():.2f} s")
        assert made.gap() < ON_A_CUT
        assert a.link(b) is link


async def test_datagrams_that_must_get_smaller() -> None:
    async with world() as w:
        await w.direct()
        link = w.a.link(w.b)
        async with load(w.a, w.b, 10.0) as made:
            await anyio.sleep(2.0)
            w.a.host.site.link.set(mtu=1300)
        made.check()
        print(f"gap {made.gap():.2f} s")
        assert made.gap() < ON_A_CUT
        assert w.a.link(w.b) is link


async def test_ten_seconds_of_darkness() -> None:
    """Calls wait, within their deadlines; what follows is the gap after the light is back."""
    async with world() as w:
        await w.direct()
        link = w.a.link(w.b)
        async with load(w.a, w.b, 20.0) as made:
            await anyio.sleep(2.0)
            w.a.host.site.blackout(10.0)
            back = anyio.current_time() + 10.0
        made.check()
        print(f"gap {made.gap() - 10.0:.2f} s after the blackout")
        first = min(each for each in made.done if each > back)
        assert first - back < ON_A_CUT
        assert w.a.link(w.b) is link
