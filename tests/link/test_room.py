"""A member that makes many keys takes its own places away, and nobody else's."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from lattica.config import LinkConfig
from lattica.identity.keys import Identity
from lattica.link.interface import Link
from lattica.link.refusals import LinkBusyError
from lattica.path.memory import Conditions, PacketNetwork
from lattica.virtual_loop import VirtualLoop
from tests.link.helpers import BOB, Peer, Recorder, exchange, member, peer

pytestmark = pytest.mark.anyio

CONFIG = LinkConfig(max_links=10, max_links_per_source=6, connect_timeout=2.0)
CROWD, HOME, OTHER = "10.0.0.9", "10.0.0.1", "10.0.0.2"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Worker(Recorder):
    """A handler that can have something in flight."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self.is_idle = True


class Town:
    """Bob, whose places are few, and those who dial him."""

    def __init__(self) -> None:
        self.network = PacketNetwork(Conditions(latency=0.005))
        self.handlers: list[Worker] = []
        self.bob: Peer
        self._stack = AsyncExitStack()
        self.peers: list[Peer] = []  # in the order in which they dialled

    async def __aenter__(self) -> Town:
        path = self.network.path("10.0.0.100")
        self.bob = await self._stack.enter_async_context(
            peer(BOB, path, membership=member(BOB), config=CONFIG)
        )

        def accept(link: Link) -> Worker:
            self.handlers.append(Worker(link))
            return self.handlers[-1]

        self.bob.endpoint.set_acceptor(accept)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def dial(self, host: str) -> Link:
        """A member at `host`, with a key of its own, dials Bob."""
        number = len(self.peers) + 1
        identity = Identity(f"number {number}".encode().ljust(32))
        path = self.network.path(host, number)
        one = await self._stack.enter_async_context(
            peer(identity, path, membership=member(identity), config=CONFIG)
        )
        self.peers.append(one)
        return await one.endpoint.connect(BOB.peer_id, self.bob.endpoint.addresses)

    def open_from(self, host: str) -> int:
        """How many links Bob has with a host."""
        links = self.bob.endpoint.current()
        return sum(link.address.startswith(f"{host}:") for link in links)


async def test_a_crowd_behind_one_address_displaces_itself() -> None:
    async with Town() as town:
        early = await town.dial(HOME)
        links = [await town.dial(CROWD) for _ in range(40)]
        await anyio.sleep(0.1)
        assert town.open_from(CROWD) == CONFIG.max_links_per_source
        assert [link.is_open for link in links] == [False] * 34 + [True] * 6
        assert early.is_open
        late = await town.dial(OTHER)
        assert late.is_open
        assert town.bob.endpoint.counters["links:displaced"] == 34


async def test_whoever_is_busy_is_not_displaced_and_the_next_is_told() -> None:
    async with Town() as town:
        links = []
        for _ in range(CONFIG.max_links_per_source):
            links.append(await town.dial(CROWD))
            await anyio.sleep(0.05)
            town.handlers[-1].is_idle = False
        with pytest.raises(LinkBusyError, match="no place"):
            await town.dial(CROWD)
        assert all(link.is_open for link in links)
        assert town.bob.endpoint.counters["links:refused"] >= 1
        town.handlers[2].is_idle = True
        assert (await town.dial(CROWD)).is_open
        await anyio.sleep(0.1)
        assert [link.is_open for link in links] == [True, True, False, True, True, True]


async def test_where_all_places_are_taken_the_largest_crowd_makes_room() -> None:
    async with Town() as town:
        homes = [await town.dial(f"10.1.0.{index}") for index in range(4)]
        crowd = [await town.dial(CROWD) for _ in range(6)]
        await anyio.sleep(0.1)
        assert len(town.bob.endpoint.current()) == CONFIG.max_links
        late = [await town.dial(f"10.2.0.{index}") for index in range(3)]
        await anyio.sleep(0.1)
        assert all(link.is_open for link in homes + late)
        assert [link.is_open for link in crowd] == [False] * 3 + [True] * 3


async def test_a_kept_peer_keeps_its_place() -> None:
    async with Town() as town:
        links = [await town.dial(CROWD)]
        await anyio.sleep(0.05)
        release = town.bob.endpoint.keep(links[0].local)
        links += [await town.dial(CROWD) for _ in range(8)]
        await anyio.sleep(0.1)
        assert links[0].is_open
        assert town.open_from(CROWD) == CONFIG.max_links_per_source
        release()
        await town.dial(CROWD)
        await anyio.sleep(0.1)
        assert not links[0].is_open


async def test_a_place_that_was_lost_is_found_again_by_dialling() -> None:
    async with Town() as town:
        first = await town.dial(CROWD)
        for _ in range(CONFIG.max_links_per_source):
            await town.dial(CROWD)
        await anyio.sleep(0.1)
        assert not first.is_open
        again = await town.peers[0].endpoint.connect(BOB.peer_id)
        await anyio.sleep(0.1)
        await exchange(again, town.handlers[-1], b"hello")
