"""How links end: closed, silent, replaced, or not at all."""

from __future__ import annotations

import time

import anyio
import pytest

from lattica.config import LinkConfig
from lattica.errors import (
    LinkLostError,
)
from lattica.path.memory import PacketNetwork
from tests.link.helpers import (
    ALICE,
    BOB,
    QUICK,
    exchange,
    peer,
    two,
)

pytestmark = pytest.mark.anyio


async def test_a_close_tells_its_reason_once_and_frees_everything() -> None:
    async with two() as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        mine, theirs = alice.to(bob), bob.to(alice)
        stream_id = link.open_stream(unidirectional=True)
        link.write(stream_id, b"last words", end=True)
        link.close("gone fishing")
        link.close("again")
        await theirs.until(lambda: bool(theirs.lost))
        await mine.until(lambda: bool(mine.lost))
        assert theirs.data[stream_id] == b"last words"
        assert "gone fishing" in str(theirs.lost[0])
        assert len(mine.lost) == len(theirs.lost) == 1
        assert isinstance(theirs.lost[0], LinkLostError)
        assert alice.changes == [(bob.id, True), (bob.id, False)]
        assert alice.endpoint.current() == bob.endpoint.current() == ()
        assert not alice.endpoint._reception
        assert not alice.endpoint._links
        with pytest.raises(LinkLostError):
            link.write(stream_id, b"too late")
        with pytest.raises(LinkLostError):
            link.open_stream(unidirectional=True)


async def test_a_lost_close_is_repeated() -> None:
    network = PacketNetwork()
    # Silence alone would not end the link for a long time.
    patient = LinkConfig(heartbeat=0.1, dead_after=30.0)
    async with two(network, patient) as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        theirs = bob.to(alice)
        network.partition("a:1", "b:1")
        link.close("gone fishing")
        network.heal("a:1", "b:1")
        await theirs.until(lambda: bool(theirs.lost), timeout=2.0)
        assert "gone fishing" in str(theirs.lost[0])


async def test_a_leaving_peer_says_so() -> None:
    network = PacketNetwork()
    async with peer(ALICE, network.path("a")) as alice:
        async with peer(BOB, network.path("b")) as bob:
            link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
            await bob.until_linked(alice)
        recorder = alice.handlers[0]
        await recorder.until(lambda: bool(recorder.lost), timeout=0.4)
        assert "shutting down" in str(recorder.lost[0])
        assert bob.handlers[0].lost
        assert not link.is_open


async def test_a_silent_peer_is_noticed_within_dead_after() -> None:
    network = PacketNetwork()
    async with two(network, LinkConfig(far_dead_after=1.8)) as (alice, bob):
        await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        network.silence("b:1")
        started = time.monotonic()
        recorder = alice.to(bob)
        await recorder.until(lambda: bool(recorder.lost), timeout=3.0)
        assert time.monotonic() - started < 2.0
        assert "nothing was heard" in str(recorder.lost[0])
        await bob.until_linked(alice, is_up=False, timeout=2.0)


async def test_an_idle_link_stays() -> None:
    async with two() as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await anyio.sleep(3 * QUICK.dead_after)  # the time itself is what is tested
        assert link.is_open
        assert bob.endpoint.find(alice.id) is not None


async def test_a_stalled_loop_does_not_kill_links() -> None:
    async with two() as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        time.sleep(2 * QUICK.dead_after)  # noqa: ASYNC251  (both ends share this loop)
        await anyio.sleep(2 * QUICK.heartbeat)
        assert link.is_open
        await exchange(link, bob.to(alice), b"still here")


async def test_a_peer_that_comes_back_gets_a_new_link() -> None:
    network = PacketNetwork()
    patient = LinkConfig(heartbeat=0.1, dead_after=30.0)
    async with peer(ALICE, network.path("a"), config=patient) as alice:
        before = network.path("b")
        async with peer(BOB, before, config=patient) as bob:
            await bob.endpoint.connect(alice.id, alice.endpoint.addresses)
            await alice.until_linked(bob)
            before.close()  # as if killed: no close leaves it
            async with peer(BOB, network.path("b"), config=patient) as again:
                link = await again.endpoint.connect(alice.id, alice.endpoint.addresses)
                await alice.handlers[0].until(lambda: bool(alice.handlers[0].lost))
                await alice.until_linked(again)
                await exchange(link, alice.to(again), b"back")
