"""Links over the in-memory packet network: making and using them."""

from __future__ import annotations

import asyncio
import os
import time

import anyio
import pytest

from lattica.config import LinkConfig
from lattica.errors import (
    UnknownPeerError,
    UnreachableError,
)
from lattica.link.interface import Link, LinkHandler
from lattica.path.memory import Conditions, PacketNetwork
from tests.link.helpers import (
    ALICE,
    BOB,
    CAROL,
    Recorder,
    exchange,
    peer,
    two,
)

pytestmark = pytest.mark.anyio


async def test_both_ends_get_the_link_with_what_the_other_has_proven() -> None:
    async with two() as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        theirs = bob.to(alice).link
        assert link.is_open
        assert link.is_dialer
        assert not theirs.is_dialer
        assert (link.remote.peer, link.remote.name) == (bob.id, "bob")
        assert (theirs.remote.peer, theirs.remote.name) == (alice.id, "alice")
        assert link.local == theirs.remote.peer
        assert link.address == "b:1"
        assert alice.endpoint.current() == (link,)
        assert alice.changes == [(bob.id, True)]


async def test_bytes_go_both_ways_and_streams_keep_apart() -> None:
    async with two() as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        mine, theirs = alice.to(bob), bob.to(alice)
        one, other = (link.open_stream(unidirectional=False) for _ in range(2))
        assert 0 not in (one, other)
        link.write(other, b"second first")
        link.write(one, b"hel")
        link.write(one, bytearray(b"l"))
        link.write(one, memoryview(b"xox")[1:2], end=True)
        await theirs.until(lambda: theirs.ended == [one] and other in theirs.data)
        assert theirs.data == {one: b"hello", other: b"second first"}
        theirs.link.write(one, b"back", end=True)
        await mine.until(lambda: mine.ended == [one])
        assert mine.data == {one: b"back"}


async def test_what_is_written_may_be_changed_afterwards() -> None:
    async with two() as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        buffer = bytearray(b"before")
        stream_id = link.open_stream(unidirectional=True)
        link.write(stream_id, memoryview(buffer), end=True)
        buffer[:] = b"after!"
        theirs = bob.to(alice)
        await theirs.until(lambda: theirs.ended == [stream_id])
        assert theirs.data[stream_id] == b"before"


async def test_reset_and_stop_reach_the_other_end() -> None:
    async with two() as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        mine, theirs = alice.to(bob), bob.to(alice)
        stream_id = link.open_stream(unidirectional=True)
        link.write(stream_id, b"x")
        await theirs.until(lambda: stream_id in theirs.data)
        theirs.link.stop_stream(stream_id, 7)
        await mine.until(lambda: mine.stops == [(stream_id, 7)])
        link.write(stream_id, b"into the void")  # late, and harmless
        other = link.open_stream(unidirectional=True)
        link.write(other, b"y")
        link.reset_stream(other, 9)
        await theirs.until(lambda: (other, 9) in theirs.resets)
        assert link.is_open


async def test_an_established_link_is_found_again() -> None:
    async with two() as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        assert await alice.endpoint.connect(bob.id) is link
        assert alice.endpoint.find(bob.id) is link


async def test_concurrent_connects_share_one_dial() -> None:
    async with two() as (alice, bob):
        links: list[Link] = []

        async def connect() -> None:
            links.append(await alice.endpoint.connect(bob.id, bob.endpoint.addresses))

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(connect)
        assert len(links) == 20
        assert len(set(map(id, links))) == 1
        await bob.until_linked(alice)
        assert len(bob.handlers) == 1


async def test_a_cancelled_connect_does_not_cancel_the_others() -> None:
    async with two(PacketNetwork(Conditions(latency=0.02))) as (alice, bob):
        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()

            async def impatient() -> None:
                with scope:
                    await alice.endpoint.connect(bob.id, bob.endpoint.addresses)

            tasks.start_soon(impatient)
            await anyio.lowlevel.checkpoint()
            scope.cancel()
        assert (await alice.endpoint.connect(bob.id)).is_open


async def test_learned_addresses_are_used_and_the_dead_ones_cost_little() -> None:
    async with two() as (alice, bob):
        alice.endpoint.learn(bob.id, ["nowhere:1", "gone:1", *bob.endpoint.addresses])
        started = time.monotonic()
        link = await alice.endpoint.connect(bob.id)
        assert link.address == "b:1"
        assert time.monotonic() - started < 2.0


async def test_a_dial_to_nobody_says_where_it_looked() -> None:
    async with two(config=LinkConfig(connect_timeout=0.4)) as (alice, _):
        with pytest.raises(UnknownPeerError, match="no address is known"):
            await alice.endpoint.connect(CAROL.peer_id)
        with pytest.raises(
            UnreachableError, match="Tried nowhere:1: no answer; elsewhere:2: no answer"
        ):
            await alice.endpoint.connect(CAROL.peer_id, ["nowhere:1", "elsewhere:2"])


async def test_a_bad_address_is_told() -> None:
    async with two() as (alice, _):
        with pytest.raises(UnreachableError, match="not of the form host:port"):
            await alice.endpoint.connect(CAROL.peer_id, ["no-port"])


async def test_whoever_fails_to_connect_may_try_again() -> None:
    network = PacketNetwork()
    async with two(network, config=LinkConfig(connect_timeout=0.3)) as (alice, bob):
        network.partition("a:1", "b:1")
        with pytest.raises(UnreachableError):
            await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        network.heal("a:1", "b:1")
        assert (await alice.endpoint.connect(bob.id)).is_open


@pytest.mark.parametrize("seed", range(3))
async def test_loss_duplicates_and_reordering_change_no_byte(seed: int) -> None:
    conditions = Conditions(latency=0.002, jitter=0.002, loss=0.05, duplicate=0.05, reorder=0.1)
    async with two(PacketNetwork(conditions, seed=seed), LinkConfig()) as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        await exchange(link, bob.to(alice), os.urandom(300_000))
        await exchange(bob.to(alice).link, alice.to(bob), os.urandom(100_000))


async def test_a_thousand_streams_arrive_and_are_freed() -> None:
    async with two(config=LinkConfig()) as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        theirs = bob.to(alice)
        sent = {}
        for number in range(1000):
            stream_id = link.open_stream(unidirectional=True)
            sent[stream_id] = b"%d" % number
            link.write(stream_id, sent[stream_id], end=True)
        await theirs.until(lambda: len(theirs.ended) == 1000)
        assert theirs.data == sent
        # Another few, so that the engines get to clear what is acknowledged.
        for _ in range(3):
            await exchange(link, theirs, b"x")
        for each in (link, theirs.link):
            assert each._engine.statistics().streams < 20  # type: ignore[attr-defined]


async def test_streams_may_be_used_in_any_order_beyond_every_limit() -> None:
    async with two(config=LinkConfig()) as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        theirs = bob.to(alice)
        ids = [link.open_stream(unidirectional=True) for _ in range(1500)]
        for stream_id in reversed(ids[:1000]):
            link.write(stream_id, b"a", end=True)
        await theirs.until(lambda: len(theirs.ended) == 1000)
        link.reset_stream(ids[1000], 5)
        for stream_id in reversed(ids[1001:]):
            link.write(stream_id, b"b", end=True)
        await theirs.until(lambda: len(theirs.ended) == 1499 and bool(theirs.resets))
        assert theirs.resets == [(ids[1000], 5)]


async def test_a_failing_handler_costs_only_its_link(caplog: pytest.LogCaptureFixture) -> None:
    async with two() as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        bob.to(alice).stream_data = fail  # type: ignore[method-assign]
        link.write(link.open_stream(unidirectional=True), b"x")
        recorder = alice.handlers[0]
        await recorder.until(lambda: bool(recorder.lost))
        assert "internal error" in str(recorder.lost[0])
        assert "ZeroDivisionError" in caplog.text


async def test_a_failing_acceptor_or_listener_is_logged_and_contained(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with two() as (alice, bob):

        def fail(*_: object) -> Recorder:
            raise ZeroDivisionError

        bob.endpoint._news._listeners.insert(0, fail)  # type: ignore[arg-type]
        acceptor, bob.endpoint._acceptor = bob.endpoint._acceptor, fail
        await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await alice.until_linked(bob, is_up=False)
        assert bob.endpoint.current() == ()
        bob.endpoint._acceptor = acceptor
        link = await alice.endpoint.connect(bob.id)
        await bob.until_linked(alice)
        await exchange(link, bob.to(alice), b"fine again")
        assert caplog.text.count("ZeroDivisionError") >= 2


async def test_an_acceptor_may_use_the_link_at_once() -> None:
    async with two() as (alice, bob):
        accept = bob.endpoint._acceptor
        assert accept is not None

        def greet(link: Link) -> LinkHandler:
            link.write(link.open_stream(unidirectional=True), b"welcome", end=True)
            return accept(link)

        bob.endpoint.set_acceptor(greet)
        await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        recorder = alice.handlers[0]
        await recorder.until(lambda: bool(recorder.ended))
        assert list(recorder.data.values()) == [b"welcome"]


async def test_an_endpoint_without_an_acceptor_keeps_dialers_waiting() -> None:
    network = PacketNetwork()
    async with peer(ALICE, network.path("a")) as alice, peer(BOB, network.path("b")) as bob:
        acceptor, bob.endpoint._acceptor = bob.endpoint._acceptor, None
        asyncio.get_running_loop().call_later(0.2, bob.endpoint.set_acceptor, acceptor)
        assert (await alice.endpoint.connect(bob.id, bob.endpoint.addresses)).is_open


async def test_an_acceptor_that_closes_the_link_at_once_is_told_of_its_end() -> None:
    async with two() as (alice, bob):
        made: list[Recorder] = []

        def slam(link: Link) -> Recorder:
            made.append(Recorder(link))
            link.close("not today")
            return made[-1]

        bob.endpoint.set_acceptor(slam)
        await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await alice.until_linked(bob, is_up=False)
        await made[0].until(lambda: bool(made[0].lost))
        await anyio.sleep(0.05)
        assert len(made[0].lost) == 1
        assert bob.endpoint.current() == ()
