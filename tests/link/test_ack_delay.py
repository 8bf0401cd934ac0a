"""Lone packets' acknowledgements ride along; bursts are not kept waiting."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from lattica.link.ack_delay import LONGER, AckDelay
from lattica.link.interface import Link
from lattica.path.memory import Conditions, PacketNetwork
from lattica.virtual_loop import VirtualLoop
from tests.link.helpers import two

pytestmark = pytest.mark.anyio
ONE_WAY = 0.0001  # seconds


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def test_a_lone_packet_waits_longer() -> None:
    acks = AckDelay()
    acks.received(1)
    assert acks.until(5.0) == acks.until(5.0) == 5.0 + LONGER


def test_from_the_second_packet_on_they_wait_no_longer() -> None:
    acks = AckDelay()
    acks.received(1)
    acks.until(5.0)
    acks.received(1)
    assert acks.until(5.0) == 5.0
    acks.received(1)
    assert acks.until(6.0) == 6.0 + LONGER  # the others were acknowledged meanwhile
    acks.received(3)
    assert acks.until(7.0) == 7.0


async def sent(link: Link) -> int:
    """Packets so far, once all is quiet."""
    await anyio.sleep(0.2)
    return link.statistics().packets_out


@pytest.mark.parametrize("engine", ["qh3"], indirect=True)
async def test_a_question_and_its_answer_take_two_packets_while_others_follow() -> None:
    async with two(PacketNetwork(Conditions(latency=ONE_WAY))) as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        back = bob.to(alice).link
        asking, answering = (each.open_stream(unidirectional=True) for each in (link, back))
        before = await sent(link), await sent(back)
        for _ in range(50):
            link.write(asking, b"question")
            await anyio.sleep(0.002)
            back.write(answering, b"answer")
            await anyio.sleep(0.002)
        assert await sent(link) - before[0] < 60
        assert await sent(back) - before[1] < 60


@pytest.mark.parametrize("engine", ["qh3"], indirect=True)
async def test_a_lone_packet_is_acknowledged_all_the_same() -> None:
    async with two(PacketNetwork(Conditions(latency=ONE_WAY))) as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        await anyio.sleep(0.2)
        link.write(link.open_stream(unidirectional=True), b"alone")
        await anyio.sleep(LONGER / 2)
        assert link.statistics().in_flight
        with anyio.fail_after(LONGER):
            while link.statistics().in_flight:
                await anyio.sleep(0.001)
        assert link.statistics().packets_lost == 0
