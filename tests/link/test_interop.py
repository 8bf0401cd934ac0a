"""aioquic and qh3 on the two ends of a link, each in both roles."""

from __future__ import annotations

import os

import anyio
import pytest

from lattica.config import LinkConfig
from lattica.path.memory import Conditions, PacketNetwork
from lattica.virtual_loop import VirtualLoop
from tests.link.helpers import ALICE, BOB, Peer, exchange, peer

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(
        ("dialer", "acceptor"),
        [("aioquic", "qh3"), ("qh3", "aioquic"), ("qh3", "qh3")],
    ),
]

MEGABYTES = 10


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Pair:
    """Alice dials Bob; each has its own engine."""

    def __init__(self, dialer: str, acceptor: str, network: PacketNetwork | None = None) -> None:
        self.network = network or PacketNetwork(Conditions(latency=0.002))
        self._dialer = LinkConfig(engine=dialer)
        self._acceptor = LinkConfig(engine=acceptor)

    async def __aenter__(self) -> tuple[Peer, Peer]:
        self._alice = peer(ALICE, self.network.path("a"), config=self._dialer, name="alice")
        self._bob = peer(BOB, self.network.path("b"), config=self._acceptor, name="bob")
        alice, bob = await self._alice.__aenter__(), await self._bob.__aenter__()
        assert (alice.endpoint.engine_name, bob.endpoint.engine_name) == (
            self._dialer.engine,
            self._acceptor.engine,
        )
        await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        return alice, bob

    async def __aexit__(self, *error: object) -> None:
        await self._bob.__aexit__(None, None, None)
        await self._alice.__aexit__(None, None, None)


async def test_proofs_hold_across_engines(dialer: str, acceptor: str) -> None:
    async with Pair(dialer, acceptor) as (alice, bob):
        mine, theirs = alice.to(bob).link, bob.to(alice).link
        assert (mine.remote.name, theirs.remote.name) == ("bob", "alice")
        await exchange(mine, bob.to(alice), b"there")
        await exchange(theirs, alice.to(bob), b"and back")


async def test_ten_megabytes_each_way(dialer: str, acceptor: str) -> None:
    async with Pair(dialer, acceptor) as (alice, bob):
        payload = os.urandom(MEGABYTES << 20)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange, alice.to(bob).link, bob.to(alice), payload)
            tasks.start_soon(exchange, bob.to(alice).link, alice.to(bob), payload)


async def test_many_streams_are_freed_on_both_ends(dialer: str, acceptor: str) -> None:
    async with Pair(dialer, acceptor) as (alice, bob):
        link, theirs = alice.to(bob).link, bob.to(alice)
        sent = {}
        for number in range(3000):
            stream_id = link.open_stream(unidirectional=True)
            sent[stream_id] = b"%d" % number
            link.write(stream_id, sent[stream_id], end=True)
        await theirs.until(lambda: len(theirs.ended) == len(sent), timeout=60)
        assert theirs.data == sent
        for _ in range(3):
            await exchange(link, theirs, b"x")
        for each in (link, theirs.link):
            assert each._engine.statistics().streams < 20  # type: ignore[attr-defined]


async def test_streams_may_start_in_any_order(dialer: str, acceptor: str) -> None:
    async with Pair(dialer, acceptor) as (alice, bob):
        link, theirs = alice.to(bob).link, bob.to(alice)
        ids = [link.open_stream(unidirectional=bool(index & 1)) for index in range(8)]
        for stream_id in reversed(ids):
            link.write(stream_id, b"%d" % stream_id, end=True)
            await theirs.until(lambda stream_id=stream_id: stream_id in theirs.ended)
        assert theirs.data == {stream_id: b"%d" % stream_id for stream_id in ids}


async def test_resets_and_stops_reach_the_other_end(dialer: str, acceptor: str) -> None:
    async with Pair(dialer, acceptor) as (alice, bob):
        link, mine, theirs = alice.to(bob).link, alice.to(bob), bob.to(alice)
        given_up, unwanted = (link.open_stream(unidirectional=False) for _ in range(2))
        link.write(given_up, b"part")
        link.write(unwanted, b"part")
        await theirs.until(lambda: {given_up, unwanted} <= theirs.data.keys())
        link.reset_stream(given_up, 7)
        theirs.link.stop_stream(unwanted, 8)
        await theirs.until(lambda: theirs.resets[:1] == [(given_up, 7)])
        await mine.until(lambda: mine.stops == [(unwanted, 8)])
        await exchange(link, theirs, b"the link goes on")


async def test_a_close_is_told_at_once_with_its_reason(dialer: str, acceptor: str) -> None:
    for closer in (0, 1):
        async with Pair(dialer, acceptor) as pair:
            here, there = pair[closer], pair[1 - closer]
            lost = there.to(here)
            here.to(there).link.close("gone fishing")
            await lost.until(lambda lost=lost: bool(lost.lost), timeout=0.1)
            assert "gone fishing" in str(lost.lost[0])


async def test_a_bad_network_loses_nothing(dialer: str, acceptor: str) -> None:
    network = PacketNetwork(
        Conditions(latency=0.01, jitter=0.005, loss=0.05, duplicate=0.05, reorder=0.2), seed=7
    )
    async with Pair(dialer, acceptor, network) as (alice, bob):
        payload = os.urandom(1 << 20)
        theirs, mine = bob.to(alice), alice.to(bob)
        ids = []
        for number in range(200):
            ids.append(mine.link.open_stream(unidirectional=True))
            mine.link.write(ids[-1], b"%d" % number, end=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange, mine.link, theirs, payload)
            tasks.start_soon(exchange, theirs.link, mine, payload)
        await theirs.until(lambda: all(each in theirs.ended for each in ids))
        assert [theirs.data[each] for each in ids] == [b"%d" % index for index in range(200)]
        stats = mine.link._engine.statistics()  # type: ignore[attr-defined]
        assert stats.packets_lost > 0
        assert 0.02 <= stats.rtt_min <= stats.rtt
