"""Links over long, lossy, jittery and interrupted paths, on a clock that jumps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest

from lattica.config import LinkConfig
from lattica.link.certificate import Certificate
from lattica.link.congestion import BoundedReno, ModelControl
from lattica.link.engine import EngineConfig
from lattica.link.engine_aioquic import AioquicEngine
from lattica.link.interface import Link
from lattica.link.quic_link import QuicLink
from lattica.path.memory import Conditions, PacketNetwork
from lattica.virtual_loop import VirtualLoop
from tests.link.helpers import CAROL, Peer, peer, two

pytestmark = pytest.mark.anyio

RATE = 1_250_000.0  # bytes/s: 10 Mbit/s, slow enough to be simulated in seconds
PATIENT = LinkConfig(dead_after=10.0, engine="aioquic")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def path(**more: Any) -> Conditions:
    """10 Mbit/s and 100 ms there and back, with a queue of 100 ms."""
    return Conditions(**{"latency": 0.05, "rate": RATE, "queue": 125_000, "mtu": 1452} | more)


class Bulk:
    """Keeps one stream full; counts what arrives in order at the other end."""

    def __init__(self, link: Link, peer: Peer) -> None:
        assert isinstance(link, QuicLink)
        self.link = link
        self.engine = link._engine
        assert isinstance(self.engine, AioquicEngine)
        self.arrived = 0
        handler = next(each for each in peer.handlers if each.link.remote.peer == link.local)
        handler.stream_data = self._arrive  # type: ignore[method-assign]

    def _arrive(self, stream_id: int, data: bytes, end: bool) -> None:
        self.arrived += len(data)

    async def run(self) -> None:
        """Until cancelled: never empty, never far ahead."""
        stream, chunk = self.link.open_stream(unidirectional=True), bytes(50_000)
        while True:
            while len(self.link._outbox) < 200_000:
                self.link.write(stream, chunk)
            await anyio.sleep(0.02)

    async def rate(self, seconds: float) -> float:
        """Bytes/s that arrive from now on."""
        before = self.arrived
        await anyio.sleep(seconds)
        return (self.arrived - before) / seconds

    @property
    def model(self) -> Any:
        assert isinstance(self.engine, AioquicEngine)
        assert isinstance(self.engine._control, ModelControl)
        return self.engine._control.model


@asynccontextmanager
async def bulk(network: PacketNetwork) -> AsyncIterator[Bulk]:
    async with two(network, PATIENT) as (alice, bob), anyio.create_task_group() as tasks:
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        flow = Bulk(link, bob)
        tasks.start_soon(flow.run)
        yield flow
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("conditions", "least"),
    [
        (path(), 0.9),
        (path(loss=0.01), 0.8),
        (path(jitter=0.02), 0.85),
        (path(jitter=0.01, jitter_reorders=True), 0.8),
        (path(reorder=0.05, reorder_delay=0.03), 0.8),
        (path(duplicate=0.02), 0.85),
        (path(corrupt=0.005), 0.8),
        (path(queue=40_000), 0.8),
    ],
    ids=["clean", "loss", "jitter", "shuffle", "stragglers", "twice", "spoilt", "shallow"],
)
async def test_a_path_is_filled(conditions: Conditions, least: float) -> None:
    async with bulk(PacketNetwork(conditions, seed=1)) as flow:
        await anyio.sleep(2.5)
        assert await flow.rate(5.5) >= least * RATE


async def test_a_deep_queue_stays_mostly_empty() -> None:
    network = PacketNetwork(path(queue=int(RATE)), seed=2)
    async with bulk(network) as flow:
        await anyio.sleep(3.0)
        waits = []
        for _ in range(600):
            await anyio.sleep(0.01)
            waits.append(network.direction("a:1", "b:1").backlog(anyio.current_time()) / RATE)
        assert flow.arrived
        assert sorted(waits)[300] <= 0.02
        assert sorted(waits)[570] <= 0.1


async def test_after_a_blackout_the_rate_is_back_in_two_seconds() -> None:
    network = PacketNetwork(path(), seed=3)
    async with bulk(network) as flow:
        await anyio.sleep(3.0)
        network.blackout("a:1", "b:1", 3.0)
        await anyio.sleep(3.0 + 2.0)
        assert flow.link.is_open
        assert await flow.rate(3.0) >= 0.85 * RATE


async def test_a_quiet_link_keeps_its_estimate() -> None:
    network = PacketNetwork(path(), seed=4)
    async with two(network, PATIENT) as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        flow = Bulk(link, bob)
        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(flow.run)
                await anyio.sleep(4.0)
                tasks.cancel_scope.cancel()
            known = flow.model.max_bandwidth.value
            assert known == pytest.approx(RATE, rel=0.05)
            stream = link.open_stream(unidirectional=True)
            for _ in range(100):  # small talk
                link.write(stream, b"hello")
                await anyio.sleep(0.1)
            assert flow.model.max_bandwidth.value >= 0.95 * known


async def test_two_links_share_a_bottleneck() -> None:
    network = PacketNetwork(Conditions(latency=0.05, mtu=1452), seed=5)
    rate = RATE / 2
    network.uplink("a:1", rate, 62_500)
    async with bulk(network) as one:
        async with peer(CAROL, network.path("c"), config=PATIENT) as carol:
            alice = one.link._owner  # type: ignore[attr-defined]
            link = await alice.connect(carol.id, carol.endpoint.addresses)
            with anyio.fail_after(5):
                while not carol.handlers:
                    await anyio.sleep(0.05)
            other = Bulk(link, carol)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other.run)
                await anyio.sleep(20.0)  # the first one has to give way
                before = one.arrived, other.arrived
                await anyio.sleep(12.0)
                got = one.arrived - before[0], other.arrived - before[1]
                tasks.cancel_scope.cancel()
        assert sum(got) / 12.0 >= 0.85 * rate
        assert min(got) >= 0.25 * sum(got)


async def test_packets_out_of_order_are_not_taken_for_lost_for_long() -> None:
    network = PacketNetwork(path(jitter=0.01, jitter_reorders=True), seed=6)
    async with bulk(network) as flow:
        await anyio.sleep(3.0)
        recovery = flow.engine._connection._loss  # type: ignore[attr-defined]
        spurious = recovery.spurious
        await anyio.sleep(5.0)
        assert recovery.spurious - spurious <= 5
        assert spurious > 0


async def test_loopback_is_not_modelled() -> None:
    config = EngineConfig(is_client=True, certificate=Certificate.generate(), datagram=1452)
    assert isinstance(AioquicEngine(config)._control, ModelControl)
    local = msgspec.structs.replace(config, congestion="local")
    assert isinstance(AioquicEngine(local)._control, BoundedReno)
