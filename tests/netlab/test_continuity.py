"""Links outlive their paths, with real sockets: no call is lost or run twice.

The same as `tests/reach/test_continuity.py` shows on the virtual clock. Gaps are printed; the
bounds are the promise, and a busy machine's pauses count in them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from lattica.link.quic_link import QuicLink
from tests.netlab.kinds import PORT_RESTRICTED, PUBLIC, SYMMETRIC_RANDOM
from tests.netlab.lab import Lab
from tests.netlab.reach_peers import RealPeer, known, real_host, real_peer, real_relays
from tests.reach.load import Load, load
from tests.reach.peers import ACCESS, ready, until
from tests.reach.test_matrix import is_relayed

pytestmark = [pytest.mark.anyio, pytest.mark.netlab]
ON_A_CUT = 2.5  # seconds, the longest gap between answers
ON_UPGRADE = 0.3
SOON = 1.0  # seconds from the begin of the load to what happens to the path
LONG = 5.0  # seconds of load


class World:
    """Two peers, their relays, and the lab that they are in."""

    def __init__(self, lab: Lab, relays: list[RealPeer], a: RealPeer, b: RealPeer) -> None:
        self.lab = lab
        self.relays = relays
        self.a = a
        self.b = b

    @property
    def link(self) -> QuicLink:
        return self.a.link(self.b)

    @property
    def is_relayed(self) -> bool:
        return is_relayed(self.a, self.b)

    async def direct(self) -> None:
        """Link the two, and wait until no relay stands between."""
        await self.a.dial(self.b)
        await self.until_direct(10.0)

    async def until_direct(self, timeout: float) -> None:
        with anyio.move_on_after(timeout):
            await until(lambda: not self.is_relayed, 2 * timeout)
            return
        raise AssertionError(f"not direct: {known(self.a, self.b)}; {known(self.b, self.a)}")

    @property
    def relay_in_use(self) -> RealPeer:
        return next(each for each in self.relays if str(each.id) in self.link.address)

    @asynccontextmanager
    async def under_load(
        self, seconds: float = LONG, *, at_most: float = ON_A_CUT
    ) -> AsyncIterator[Load]:
        """All is as it must be: once and whole, on the same connection, with no longer gap."""
        link = self.link
        async with load(self.a, self.b, seconds) as made:
            await anyio.sleep(SOON)
            yield made
        made.check()
        print(f"{made.sent} calls, gap {made.gap():.2f} s")
        assert made.gap() < at_most
        assert self.link is link


@asynccontextmanager
async def world(
    one: str = PORT_RESTRICTED, other: str = PORT_RESTRICTED, *, ipv6: bool = False
) -> AsyncIterator[World]:
    async with (
        Lab(seed=2) as lab,
        real_relays(lab) as relays,
        real_peer(await real_host(lab, one, ipv6=ipv6), "a", relays=relays) as a,
        real_peer(await real_host(lab, other, ipv6=ipv6), "b", relays=relays) as b,
    ):
        await ready(a, b)
        yield World(lab, relays, a, b)


async def test_from_a_relay_to_a_direct_way() -> None:
    async with world() as w:
        await w.a.dial(w.b)
        link = w.link
        async with load(w.a, w.b, 4.0) as made:
            assert w.is_relayed
            await until(lambda: not w.is_relayed, 4.0)
        made.check()
        print(f"{made.sent} calls, gap {made.gap():.2f} s")
        assert made.gap() < ON_UPGRADE
        assert w.link is link


async def test_from_a_direct_way_to_a_relay() -> None:
    async with world() as w:
        await w.direct()
        async with w.under_load():
            await w.lab.partition(w.a.host.site, w.b.host.site)
            await until(lambda: w.is_relayed, 5.0)


@pytest.mark.parametrize("how", ["unreachable", pytest.param("killed", marks=pytest.mark.slow)])
async def test_from_a_relay_that_is_gone_to_another(how: str) -> None:
    async with world(SYMMETRIC_RANDOM, SYMMETRIC_RANDOM) as w:
        await w.a.dial(w.b)
        first = w.relay_in_use
        async with w.under_load():
            if how == "unreachable":
                await first.host.site.cut()
            else:
                first.path.close()  # the kernel tells that nobody listens there
            await until(lambda: w.relay_in_use is not first, 5.0)


@pytest.mark.parametrize("which", ["dialer", pytest.param("acceptor", marks=pytest.mark.slow)])
async def test_a_router_that_starts_anew_with_another_address(which: str) -> None:
    async with world() as w:
        await w.direct()
        async with w.under_load():
            await (w.a if which == "dialer" else w.b).host.site.reboot("new")
        await w.until_direct(30.0)


@pytest.mark.parametrize("kind", [pytest.param(PUBLIC, marks=pytest.mark.slow), PORT_RESTRICTED])
async def test_a_peer_that_goes_to_another_network(kind: str) -> None:
    async with world() as w:
        await w.direct()
        elsewhere = await w.lab.site(kind, delay=ACCESS)
        async with w.under_load():
            await w.a.host.move(elsewhere)
        await w.until_direct(30.0)


@pytest.mark.slow
async def test_datagrams_that_must_get_smaller() -> None:
    async with world() as w:
        await w.direct()
        async with w.under_load():
            await w.a.host.site.link.set(mtu=1300)


@pytest.mark.slow
async def test_ten_seconds_of_darkness() -> None:
    async with world() as w:
        await w.direct()
        async with w.under_load(17.0, at_most=10.0 + ON_A_CUT):
            await w.a.host.site.blackout(10.0)


@pytest.mark.slow
async def test_a_line_that_loses_ipv6() -> None:
    """With IPv4 alone these two need a relay; with IPv6 nothing translates."""
    async with world(SYMMETRIC_RANDOM, SYMMETRIC_RANDOM, ipv6=True) as w:
        await w.a.dial(w.b)
        await until(lambda: w.link.address.startswith("[2001:db8:"), 10.0)
        async with w.under_load():
            await w.a.host.lose_ipv6()
            await until(lambda: w.is_relayed, 5.0)
