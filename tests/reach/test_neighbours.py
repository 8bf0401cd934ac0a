"""Peers behind the same router reach each other without leaving home."""

from __future__ import annotations

import anyio
import msgspec
import pytest

from lattica.config import ReachConfig
from lattica.path import addresses as text
from lattica.virtual_loop import VirtualLoop
from tests.netlab.kinds import CARRIER_HOME, PORT_RESTRICTED, SYMMETRIC_RANDOM
from tests.netlab.memory_lab import MemoryLab
from tests.reach.peers import ACCESS, CONFIG, lab_host, lab_peer, lab_relays, ready, until
from tests.reach.test_matrix import is_relayed

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


@pytest.mark.parametrize("kind", [PORT_RESTRICTED, SYMMETRIC_RANDOM])
async def test_in_one_home_packets_stay_there(kind: str) -> None:
    lab = MemoryLab(seed=3)
    site = lab.site(kind, delay=ACCESS)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab.host(site), "a", relays=relays) as a,
        lab_peer(lab.host(site), "b", relays=relays) as b,
    ):
        await ready(a, b)
        await a.dial(b)
        await until(lambda: a.link(b).address == text.join(b.host.address, 4242), 5.0)
        await until(lambda: b.link(a).address == text.join(a.host.address, 4242), 5.0)
        await a.check_transfer(b)
        assert a.link(b).rtt < ACCESS or (await a.stub(b).ping()) is None


async def test_two_homes_of_one_carrier_meet_at_its_router() -> None:
    """Its router turns packets round, as RFC 6888 asks."""
    lab = MemoryLab(seed=3)
    first = lab.site(CARRIER_HOME, delay=ACCESS)
    second = lab.site(PORT_RESTRICTED, behind=first.parent, delay=ACCESS)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab.host(first), "a", relays=relays) as a,
        lab_peer(lab.host(second), "b", relays=relays) as b,
    ):
        await ready(a, b)
        await a.dial(b)
        await until(lambda: not is_relayed(a, b), 5.0)
        await a.check_transfer(b)
        assert a.reach.report.hairpin is True


async def test_addresses_at_home_are_kept_back_if_one_says_so() -> None:
    lab = MemoryLab(seed=3)
    config = msgspec.structs.replace(CONFIG, reach=ReachConfig(publish_lan=False))
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "a", relays=relays, config=config) as a,
    ):
        await ready(a)
        told = (*a.reach.addresses, *a.reach.candidates.news().addresses)
        assert told
        assert not [each for each in told if a.host.address in each]


async def test_another_homes_addresses_are_not_tried() -> None:
    """The same private address means another machine there: nothing may be sent to it here."""
    lab = MemoryLab(seed=3)
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, SYMMETRIC_RANDOM), "a", relays=relays) as a,
        lab_peer(lab_host(lab, SYMMETRIC_RANDOM), "b", relays=relays) as b,
    ):
        await ready(a, b)
        sent: list[str] = []
        carry = a.host.carry

        def note(datagram: bytes, source: str, target: str) -> None:
            sent.append(target)
            carry(datagram, source, target)

        a.host.carry = note  # type: ignore[method-assign]
        assert a.endpoint.addresses[0] not in b.endpoint.addresses
        await a.dial(b)
        await anyio.sleep(10.0)
        tried = [each for each in sent if b.host.address in each]
        assert len(tried) <= 12  # the first dial's packets only: it tried what b has published
