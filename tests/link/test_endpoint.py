"""Links over the in-memory packet network: making, using and losing them."""

from __future__ import annotations

import asyncio
import os
import time

import anyio
import pytest

from lattica.clock import ManualClock
from lattica.config import LinkConfig
from lattica.errors import (
    CrossMeshError,
    LinkLostError,
    LinkRefusedError,
    SelfDialError,
    UnknownPeerError,
    UnreachableError,
    WrongPeerError,
)
from lattica.identity.grants import CALL, Membership
from lattica.link.interface import Link
from lattica.path.memory import Conditions, PacketNetwork
from tests.link.helpers import ALICE, BOB, CAROL, MESH, QUICK, Peer, Recorder, member, peer, two

pytestmark = pytest.mark.anyio


async def exchange(sender: Link, receiver: Recorder, data: bytes) -> None:
    """Send `data` on a new stream and check what arrives."""
    stream_id = sender.open_stream(unidirectional=True)
    sender.write(stream_id, data, end=True)
    await receiver.until(lambda: stream_id in receiver.ended)
    assert receiver.data[stream_id] == data


# ------------------------------------------------------------------ making links


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
        with pytest.raises(UnreachableError, match="does not answer at nowhere:1, elsewhere:2"):
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


# --------------------------------------------------------------------- refusals


async def test_another_peer_at_the_address_is_refused() -> None:
    async with two() as (alice, bob):
        with pytest.raises(WrongPeerError, match=CAROL.peer_id.short):
            await alice.endpoint.connect(CAROL.peer_id, bob.endpoint.addresses)
        with pytest.raises(UnknownPeerError):  # and not asked there again
            await alice.endpoint.connect(CAROL.peer_id)
        assert bob.handlers == []


async def test_a_wrong_peer_does_not_hide_the_right_one() -> None:
    network = PacketNetwork()
    async with two(network) as (alice, bob), peer(CAROL, network.path("c")) as carol:
        addresses = (*bob.endpoint.addresses, *carol.endpoint.addresses)
        link = await alice.endpoint.connect(carol.id, addresses)
        assert link.remote.peer == carol.id


async def test_dialling_oneself_is_refused() -> None:
    async with two() as (alice, _):
        with pytest.raises(SelfDialError):
            await alice.endpoint.connect(alice.id, alice.endpoint.addresses)
        with pytest.raises(SelfDialError):
            await alice.endpoint.connect(CAROL.peer_id, alice.endpoint.addresses)


async def test_a_copy_of_the_own_key_is_refused() -> None:
    network = PacketNetwork()
    async with (
        peer(ALICE, network.path("a")) as alice,
        peer(ALICE, network.path("copy")) as copy,
    ):
        with pytest.raises(SelfDialError):
            await alice.endpoint.connect(BOB.peer_id, copy.endpoint.addresses)


async def test_another_mesh_is_refused_at_both_ends() -> None:
    network = PacketNetwork()
    elsewhere = member(CAROL, mesh=CAROL)
    async with (
        peer(ALICE, network.path("a")) as alice,
        peer(CAROL, network.path("c"), membership=elsewhere) as carol,
    ):
        with pytest.raises(CrossMeshError, match=MESH.peer_id.short):
            await carol.endpoint.connect(alice.id, alice.endpoint.addresses)
        assert alice.endpoint.counters["unproven:CrossMeshError"] == 1
        with pytest.raises(CrossMeshError):
            await alice.endpoint.connect(carol.id, carol.endpoint.addresses)
        assert alice.handlers == carol.handlers == []


async def test_a_stranger_is_let_in_without_scopes_and_a_member_with_its_own() -> None:
    network = PacketNetwork()
    async with (
        peer(ALICE, network.path("a"), membership=member(ALICE)) as alice,
        peer(BOB, network.path("b"), membership=Membership(MESH.peer_id)) as bob,
    ):
        link = await bob.endpoint.connect(alice.id, alice.endpoint.addresses)
        await alice.until_linked(bob)
        assert link.remote.scopes == {CALL}
        assert alice.to(bob).link.remote.scopes == frozenset()


async def test_an_expired_grant_is_refused_with_the_reason_at_both_ends() -> None:
    network = PacketNetwork()
    clock = ManualClock()
    late = member(BOB, expires=clock.time() - 5)
    async with (
        peer(ALICE, network.path("a"), clock=clock) as alice,
        peer(BOB, network.path("b"), membership=late, clock=clock) as bob,
    ):
        with pytest.raises(LinkRefusedError, match="expired 5 s ago"):
            await bob.endpoint.connect(alice.id, alice.endpoint.addresses)
        with pytest.raises(LinkRefusedError, match="expired 5 s ago"):
            await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        assert alice.handlers == bob.handlers == []


async def test_a_link_ends_with_its_grant() -> None:
    network = PacketNetwork()
    clock = ManualClock()
    async with (
        peer(ALICE, network.path("a"), clock=clock) as alice,
        peer(
            BOB, network.path("b"), membership=member(BOB, expires=clock.time() + 60), clock=clock
        ) as bob,
    ):
        link = await bob.endpoint.connect(alice.id, alice.endpoint.addresses)
        clock.advance(61)
        recorder = bob.to(alice)
        await recorder.until(lambda: bool(recorder.lost))
        assert "grant expired" in str(recorder.lost[0])
        assert not link.is_open


# ------------------------------------------------------------------ losing links


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
        assert not alice.endpoint._by_id
        assert not alice.endpoint._all
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
    async with two(network, LinkConfig()) as (alice, bob):
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


# -------------------------------------------------------------- simultaneous dials


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
        assert len(alice.endpoint._all) == len(bob.endpoint._all) == 1


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


# ------------------------------------------------------------------- bad networks


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
            assert len(each._engine._connection._streams) < 20  # type: ignore[attr-defined]


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


async def test_an_endpoint_without_an_acceptor_keeps_dialers_waiting() -> None:
    network = PacketNetwork()
    async with peer(ALICE, network.path("a")) as alice, peer(BOB, network.path("b")) as bob:
        acceptor, bob.endpoint._acceptor = bob.endpoint._acceptor, None
        asyncio.get_running_loop().call_later(0.2, bob.endpoint.set_acceptor, acceptor)
        assert (await alice.endpoint.connect(bob.id, bob.endpoint.addresses)).is_open
