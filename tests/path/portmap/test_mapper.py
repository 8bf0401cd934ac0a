"""When a peer asks its router for ports, what it tells of them, and when it lets go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from lattica.config import PortMapConfig
from lattica.path.portmap.mapper import PortMapper
from lattica.path.portmap.network import Route
from lattica.virtual_loop import VirtualLoop
from tests.path.portmap.gateway import GATEWAY, OUTSIDE, WAY, FakeNetwork, Gateway
from tests.reach.peers import until

pytestmark = pytest.mark.anyio
CONFIG = PortMapConfig(protocols=("pcp", "nat-pmp"))
UDP, TCP = 4242, 4443
BOTH = (f"{OUTSIDE}:{UDP}", f"tcp:{OUTSIDE}:{TCP}")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Told(list[tuple[str, ...]]):
    """What was said of addresses, in order."""


@asynccontextmanager
async def mapping(
    gateway: Gateway, told: Told, *, host: str = "0.0.0.0", way: Route | None = WAY
) -> AsyncIterator[tuple[PortMapper, FakeNetwork]]:
    network = FakeNetwork(gateway, way)
    async with PortMapper(
        port=UDP, tcp_port=TCP, host=host, on_change=told.append, config=CONFIG, network=network
    ) as mapper:
        yield mapper, network


async def test_ports_are_mapped_told_and_removed_at_the_end() -> None:
    gateway, told = Gateway(anyio.current_time), Told()
    async with mapping(gateway, told) as (mapper, _):
        await until(lambda: mapper.external_addresses == BOTH, 5.0)
        assert told[-1] == BOTH
        assert mapper.status == f"mapped by pcp at {GATEWAY}"
    assert not gateway.mapped
    assert told[-1] == ()
    assert mapper.status == "stopped"


@pytest.mark.parametrize(
    ("host", "way", "why"),
    [
        ("127.0.0.1", WAY, "for this machine only"),
        ("192.168.99.9", WAY, "does not face the router"),
        ("0.0.0.0", None, "no router is known"),
        ("0.0.0.0", Route("9.9.9.1", "9.9.9.2"), "not needed"),
    ],
)
async def test_nothing_is_sent_where_nothing_is_to_be_gained(
    host: str, way: Route | None, why: str
) -> None:
    gateway = Gateway(anyio.current_time)
    async with mapping(gateway, Told(), host=host, way=way) as (mapper, network):
        await anyio.sleep(600.0)
        assert why in mapper.status
        assert network.sent == []
        assert network.opened == 0


async def test_a_router_that_does_not_answer_is_asked_again_ever_more_rarely() -> None:
    gateway, told = Gateway(anyio.current_time), Told()
    gateway.is_silent = True
    async with mapping(gateway, told) as (mapper, network):
        await anyio.sleep(CONFIG.retry_after / 2)
        assert f"the router at {GATEWAY} maps no ports" in mapper.status
        assert "no answer" in mapper.status
        await anyio.sleep(4 * CONFIG.retry_after)
        early = len(network.sent)
        await anyio.sleep(4 * CONFIG.retry_after)
        assert len(network.sent) - early < early
        assert told == []
        gateway.is_silent = False
        await until(lambda: mapper.external_addresses == BOTH, 20 * CONFIG.retry_after)


async def test_another_router_is_asked_as_soon_as_it_is_seen() -> None:
    gateway, told = Gateway(anyio.current_time), Told()
    async with mapping(gateway, told) as (mapper, network):
        await until(lambda: mapper.external_addresses == BOTH, 5.0)
        network.way = None  # the cable is pulled
        await until(lambda: mapper.external_addresses == (), 2 * CONFIG.watch_every)
        network.way = WAY
        gateway.reboot()
        mapper.network_changed()
        await until(lambda: mapper.external_addresses == BOTH, 1.0)


async def test_after_a_sleep_the_ports_are_mapped_again_at_once() -> None:
    """The router has forgotten them; nothing says so, and it may be long until a renewal."""
    gateway, told = Gateway(anyio.current_time), Told()
    async with mapping(gateway, told) as (mapper, _):
        await until(lambda: mapper.external_addresses == BOTH, 5.0)
        before = dict(gateway.mapped)
        gateway.mapped.clear()
        await anyio.sleep(1.0)
        assert not gateway.mapped
        mapper.ask_anew()
        await until(lambda: gateway.mapped == before and mapper.external_addresses == BOTH, 2.0)


async def test_after_a_sleep_a_router_that_remembers_takes_nobody_for_another() -> None:
    gateway, told = Gateway(anyio.current_time), Told()
    async with mapping(gateway, told) as (mapper, _):
        await until(lambda: mapper.external_addresses == BOTH, 5.0)
        mapper.ask_anew()
        await anyio.sleep(5.0)
        assert mapper.external_addresses == BOTH
        assert len(gateway.mapped) == 2
