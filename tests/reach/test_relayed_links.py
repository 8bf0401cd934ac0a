"""QUIC links through a relay: what arrives, how fast, and what a hostile relay can do."""

from __future__ import annotations

import functools
import random
from typing import Any

import anyio
import msgspec
import pytest

from lattica.config import RelayConfig
from lattica.link.interface import Link
from lattica.reach import forwarding
from lattica.reach.forwarding import Forwarder
from lattica.virtual_loop import VirtualLoop
from tests.reach.triangle import OVER, PATIENT, HostileForwarder, Triangle, triangle

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
AIOQUIC = msgspec.structs.replace(PATIENT, engine="aioquic")  # as across any network
BODY = random.Random(0).randbytes(MIB)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


async def seconds_for(met: Triangle, body: bytes, *, is_up: bool = True) -> float:
    """How long a body takes; fails unless it arrives whole."""
    sender, receiver = (met.alice, met.bob) if is_up else (met.bob, met.alice)
    link, handler = sender.to(receiver).link, receiver.to(sender)
    began = anyio.current_time()
    stream = link.open_stream(unidirectional=True)
    link.write(stream, body, end=True)
    await handler.until(lambda: stream in handler.ended, timeout=120.0)
    assert handler.data.pop(stream) == body
    return anyio.current_time() - began


@pytest.mark.parametrize("engine", ["aioquic", "qh3"], indirect=True)
async def test_a_mebibyte_arrives_whole_both_ways(engine: str) -> None:
    pytest.importorskip(engine)
    async with triangle() as met:
        assert met.link.address == OVER
        assert await seconds_for(met, BODY) < 2.0
        assert await seconds_for(met, BODY, is_up=False) < 2.0
        (session,) = met.forwarder.statistics().sessions
        assert (session.source, session.target) == (met.alice.id, met.bob.id)
        assert min(session.up.bytes, session.down.bytes) > MIB
        assert session.up.dropped == session.down.dropped == 0


async def test_a_relayed_echo_takes_the_time_of_the_legs() -> None:
    async with triangle() as met:
        await seconds_for(met, b"warm")
        there = await seconds_for(met, b"x")
        assert there == pytest.approx(0.02, abs=0.002)


async def test_the_relay_sees_nothing_of_what_passes() -> None:
    seen: list[bytes] = []

    class Curious(Forwarder):
        def forward(self, frames: list[tuple[bytes, Any]]) -> None:
            seen.extend(each for each, _ in frames)
            super().forward(frames)

    async with triangle(make=Curious) as met:
        await seconds_for(met, b"a secret that nobody else may read" * 20)
    assert seen
    assert not any(b"secret" in each or b"alice" in each for each in seen)


FAULTS: dict[str, tuple[dict[str, float], float]] = {
    "drops": ({"drop": 0.05}, 3.0),
    "drops_much": ({"drop": 0.3}, 100.0),
    "repeats": ({"repeat": 0.5}, 3.0),
    "reorders": ({"delay": 0.1}, 3.0),
    "tampers": ({"tamper": 0.05}, 3.0),
    "all": ({"drop": 0.03, "repeat": 0.1, "delay": 0.05, "tamper": 0.03}, 4.0),
}


@pytest.mark.parametrize(("faults", "most"), FAULTS.values(), ids=FAULTS)
async def test_a_hostile_relay_costs_time_only(faults: dict[str, float], most: float) -> None:
    make = functools.partial(HostileForwarder, faults=faults)
    async with triangle(make=make, config=AIOQUIC) as met:
        link: Link = met.link
        assert await seconds_for(met, BODY) + await seconds_for(met, BODY, is_up=False) < most
        assert met.alice.endpoint.find(met.bob.id) is link  # the same one all along
        assert not met.alice.to(met.bob).lost
        assert not met.bob.to(met.alice).lost
        assert isinstance(met.forwarder, HostileForwarder)
        assert min(met.forwarder.done[fault] for fault in faults) > 20


async def test_what_a_link_gets_of_a_relay_at_its_limit() -> None:
    limits = RelayConfig(rate=500_000.0, rate_per_peer=500_000.0, burst=100_000, min_burst=16_000)
    async with triangle(limits, config=AIOQUIC) as met:
        taken = await seconds_for(met, BODY * 4)
        assert 4 * MIB / taken > 0.8 * limits.rate
        assert met.relay.endpoint.counters[forwarding.OVER_RATE] > 0
        assert met.forwarder.load.share > 0.6


async def test_a_link_survives_while_others_use_up_the_relay() -> None:
    """Bulk from Alice takes all there is; Bob's beats and Alice's own still pass."""
    limits = RelayConfig(rate=200_000.0, rate_per_peer=200_000.0, burst=50_000, min_burst=16_000)
    config = msgspec.structs.replace(AIOQUIC, dead_after=1.8, far_dead_after=1.8)
    async with triangle(limits, config=config) as met:
        await seconds_for(met, BODY * 2)
        assert not met.alice.to(met.bob).lost
        assert not met.bob.to(met.alice).lost


async def test_a_closed_session_carries_nothing_more() -> None:
    config = msgspec.structs.replace(
        PATIENT, dead_after=1.0, heartbeat=0.2, far_dead_after=1.0, far_heartbeat=0.2
    )
    async with triangle(config=config) as met:
        await seconds_for(met, b"before")
        met.forwarder.close(b"session1", met.bob.id)
        await met.bob.until_linked(met.alice, is_up=False)
        await met.alice.until_linked(met.bob, is_up=False)
        assert met.relay.endpoint.find(met.alice.id) is not None
