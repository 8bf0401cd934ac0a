"""Peers that strangers cannot reach are found through relays, for as long as they live."""

from __future__ import annotations

import anyio
import msgspec
import pytest

from lattica.config import ReachConfig, RelayConfig
from lattica.errors import UnreachableError
from lattica.identity.grants import CALL
from lattica.path import addresses as text
from lattica.virtual_loop import VirtualLoop
from tests.link.helpers import ALICE
from tests.netlab.kinds import PORT_RESTRICTED, PUBLIC, SYMMETRIC_RANDOM
from tests.netlab.memory_lab import MemoryLab
from tests.reach.peers import ACCESS, CONFIG, lab_host, lab_peer, lab_relays, ready, until
from tests.reach.test_matrix import is_relayed

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


async def test_a_reservation_outlives_its_time_and_an_idle_link_its_sessions() -> None:
    lab = MemoryLab(seed=4)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, SYMMETRIC_RANDOM), "a", relays=relays) as a,
        lab_peer(lab_host(lab, SYMMETRIC_RANDOM), "b", relays=relays) as b,
        lab_peer(lab_host(lab, SYMMETRIC_RANDOM), "c", relays=relays) as c,
    ):
        await ready(a, b, c)
        await a.dial(b)
        link = a.link(b)
        await anyio.sleep(5 * RelayConfig().reservation)
        await a.stub(b, 2.0).ping()
        assert a.link(b) is link
        assert is_relayed(a, b)
        await c.dial(b)


async def test_without_a_reservation_the_error_says_so() -> None:
    lab = MemoryLab(seed=4)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "a", relays=relays) as a,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "b") as b,
    ):
        await ready(a)
        address = text.join_relay(str(relays[0].id), relays[0].endpoint.addresses[0])
        began = anyio.current_time()
        with pytest.raises(UnreachableError, match="has not asked this relay"):
            await a.endpoint.connect(b.id, [address])
        assert anyio.current_time() - began < 1.0


async def test_a_relay_that_is_no_relay_is_not_used() -> None:
    lab = MemoryLab(seed=4)
    async with (
        lab_peer(lab_host(lab, PUBLIC), "no relay", relay=False) as unwilling,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "a", relays=[unwilling]) as a,
    ):
        await anyio.sleep(60.0)
        assert a.reach.relays == ()
        assert not [each for each in a.reach.addresses if text.is_relay(each)]


async def test_a_relay_without_the_meshs_grant_is_not_used() -> None:
    lab = MemoryLab(seed=4)
    async with (
        lab_peer(lab_host(lab, PUBLIC), "r", relay=True, scopes=[CALL]) as relay,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "a", relays=[relay]) as a,
    ):
        await anyio.sleep(60.0)
        assert a.reach.relays == ()
        address = text.join_relay(str(relay.id), relay.endpoint.addresses[0])
        with pytest.raises(UnreachableError, match="not granted that peer to relay"):
            await a.endpoint.connect(ALICE.peer_id, [address])


async def test_whom_strangers_reach_relays_by_itself() -> None:
    lab = MemoryLab(seed=4)
    async with (
        lab_peer(lab_host(lab, PUBLIC), "public") as public,
        lab_peer(lab_host(lab, PUBLIC), "other", relays=[public]) as other,
        lab_peer(lab_host(lab, SYMMETRIC_RANDOM), "a", relays=[public, other]) as a,
        lab_peer(lab_host(lab, SYMMETRIC_RANDOM), "b", relays=[public, other]) as b,
    ):
        await ready(a, b)
        assert public.reach.is_relay
        assert not a.reach.is_relay
        await a.dial(b)
        await a.check_transfer(b)


async def test_nearer_relays_come_first() -> None:
    lab = MemoryLab(seed=4)
    config = msgspec.structs.replace(CONFIG, reach=ReachConfig(relays=3))
    far = lab.host(lab.site(PUBLIC, delay=0.2))
    near = lab.host(lab.site(PUBLIC, delay=ACCESS))
    middle = lab.host(lab.site(PUBLIC, delay=0.05))
    async with (
        lab_peer(far, "far", relay=True) as one,
        lab_peer(near, "near", relay=True) as two,
        lab_peer(middle, "middle", relay=True) as three,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "a", relays=[one, two, three], config=config) as a,
    ):
        await until(lambda: len(a.reach.relays) == 3, 10.0)
        told = [each for each in a.reach.addresses if text.is_relay(each)]
        order = [text.split_relay(each)[0] for each in told]
        assert list(dict.fromkeys(order)) == [str(each.id) for each in (two, three, one)]


async def test_a_lost_relay_is_replaced() -> None:
    lab = MemoryLab(seed=4)
    async with (
        lab_relays(lab, 3) as relays,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "a", relays=relays) as a,
    ):
        await ready(a)
        lost = a.reach.relays[0].peer
        next(each for each in relays if each.id == lost).host.site.cut()
        await until(
            lambda: len(a.reach.relays) == 2 and lost not in [each.peer for each in a.reach.relays],
            60.0,
        )
