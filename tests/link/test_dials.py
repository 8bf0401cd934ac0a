"""Two peers that dial each other at once end with one link."""

from __future__ import annotations

import anyio
import pytest

from lattica.config import LinkConfig
from lattica.link.interface import Link
from lattica.path.memory import Conditions, PacketNetwork
from tests.link.helpers import (
    Peer,
    exchange,
    two,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("latency", [0.0, 0.02])
async def test_simultaneous_dials_end_as_the_lower_peers_link(latency: float) -> None:
    async with two(PacketNetwork(Conditions(latency=latency))) as (alice, bob):
        results: dict[str, Link] = {}

        async def connect(name: str, one: Peer, other: Peer) -> None:
            results[name] = await one.endpoint.connect(other.id, other.endpoint.addresses)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connect, "alice", alice, bob)
            tasks.start_soon(connect, "bob", bob, alice)
        assert results["alice"].is_dialer
        assert not results["bob"].is_dialer
        await exchange(results["alice"], bob.to(alice), b"from alice")
        await exchange(results["bob"], alice.to(bob), b"from bob")
        assert len(alice.handlers) == len(bob.handlers) == 1
        await anyio.sleep(0.2)
        assert len(alice.endpoint._links) == len(bob.endpoint._links) == 1


@pytest.mark.parametrize("seed", range(6))
async def test_no_call_is_lost_however_the_dials_fall(seed: int) -> None:
    conditions = Conditions(latency=0.005, jitter=0.02, reorder=0.2, reorder_delay=0.02)
    network = PacketNetwork(conditions, seed=seed)
    async with two(network, LinkConfig()) as (alice, bob):

        async def connect(one: Peer, other: Peer, delay: float) -> None:
            await anyio.sleep(delay)
            link = await one.endpoint.connect(other.id, other.endpoint.addresses)
            stream_id = link.open_stream(unidirectional=True)
            link.write(stream_id, one.id.raw, end=True)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connect, alice, bob, seed * 0.008)
            tasks.start_soon(connect, bob, alice, 0.016)
        for one, other in ((alice, bob), (bob, alice)):
            await one.until_linked(other)
            recorder = one.to(other)
            await recorder.until(lambda r=recorder, o=other: o.id.raw in r.data.values())
        assert [each.lost for each in (*alice.handlers, *bob.handlers)] == [[], []]


async def test_the_lower_peers_dead_end_does_not_block_the_other() -> None:
    async with two() as (alice, bob):
        failed = anyio.Event()

        async def lower() -> None:
            link = await alice.endpoint.connect(bob.id, ["nowhere:1"])
            assert not link.is_dialer
            failed.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lower)
            await anyio.lowlevel.checkpoint()
            link = await bob.endpoint.connect(alice.id, alice.endpoint.addresses)
        assert failed.is_set()
        assert link.is_open


class Recording(PacketNetwork):
    """Keeps what was sent, so that it can be delivered again."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[bytes, str, str]] = []

    def carry(self, datagram: bytes, source: str, target: str) -> None:
        self.sent.append((datagram, source, target))
        super().carry(datagram, source, target)


async def test_late_copies_of_a_closed_links_first_packets_begin_nothing() -> None:
    network = Recording()
    async with two(network) as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        early = [each for each in network.sent if each[0][0] & 0xC0 == 0xC0]
        assert {source for _, source, _ in early} == {"a:1", "b:1"}
        link.close("done")
        await bob.until_linked(alice, is_up=False)
        for datagram, source, target in early:
            network.carry(datagram, source, target)
        await anyio.sleep(0.1)
        for each in (alice, bob):
            assert not len(each.endpoint._links)
