"""Heartbeats beside QUIC: who can make them, what they keep alive, how cheap they are."""

from __future__ import annotations

import os
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.config import LinkConfig
from lattica.link.beat import SIZE, Beats, Kind
from lattica.link.liveness import REFRESH
from lattica.link.quic_link import QuicLink
from lattica.link.schedule import Schedule
from lattica.path.memory import Conditions, PacketNetwork
from lattica.virtual_loop import VirtualLoop
from tests.link.helpers import exchange, two

pytestmark = pytest.mark.anyio
CONFIG = LinkConfig(far_dead_after=1.8)
BINDING = bytes(range(32))


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def ends(binding: bytes = BINDING) -> tuple[Beats, Beats]:
    return Beats(binding, is_dialer=True), Beats(binding, is_dialer=False)


# ------------------------------------------------------------------- without I/O


def test_each_end_reads_what_the_other_made() -> None:
    dialer, acceptor = ends()
    for kind in (Kind.ASK, Kind.ANSWER):
        asked = dialer.make(kind)
        assert len(asked) == SIZE
        assert asked[1:9] == acceptor.id != dialer.id
        assert acceptor.take(asked) is kind
        assert dialer.take(acceptor.make(kind)) is kind


def test_a_beat_is_good_once_and_for_the_other_end_of_this_link_only() -> None:
    dialer, acceptor = ends()
    first, second = dialer.make(Kind.ASK), dialer.make(Kind.ASK)
    assert acceptor.take(second) is Kind.ASK
    assert acceptor.take(second) is None  # replayed
    assert acceptor.take(first) is None  # older
    assert dialer.take(dialer.make(Kind.ASK)) is None  # reflected
    assert ends(bytes(32))[1].take(dialer.make(Kind.ASK)) is None  # another session's


@given(st.integers(0, SIZE - 1), st.integers(1, 255))
def test_a_changed_beat_is_no_beat(place: int, change: int) -> None:
    dialer, acceptor = ends()
    forged = bytearray(dialer.make(Kind.ASK))
    forged[place] ^= change
    assert acceptor.take(bytes(forged)) is None


@given(st.binary(min_size=SIZE, max_size=SIZE))
def test_random_bytes_are_no_beat(data: bytes) -> None:
    assert ends()[1].take(data) is None


# -------------------------------------------------------------------- on a link


async def test_an_idle_link_lives_on_beats_and_quic_hardly_sends() -> None:
    async with two(PacketNetwork(Conditions(latency=0.02)), CONFIG) as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        theirs = bob.to(alice).link
        await anyio.sleep(5)
        before, began = link.statistics(), anyio.current_time()
        await anyio.sleep(REFRESH * 6)
        assert link.is_open
        assert theirs.is_open
        after = link.statistics()
        exchanges = (anyio.current_time() - began) / CONFIG.heartbeat
        packets = after.packets_out - before.packets_out
        assert packets < 1.1 * exchanges + 20
        assert after.bytes_out - before.bytes_out < SIZE * packets + 20 * 100
        await exchange(link, bob.to(alice), b"and it carries data")


@pytest.mark.parametrize("seed", range(3))
async def test_loss_does_not_end_an_idle_link(seed: int) -> None:
    network = PacketNetwork(Conditions(latency=0.05, loss=0.1), seed=seed)
    async with two(network, CONFIG) as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await anyio.sleep(300)
        assert link.is_open


async def test_a_path_that_drops_beats_still_carries_the_link() -> None:
    network = PacketNetwork(Conditions(latency=0.02))
    carry = network.carry
    network.carry = lambda data, *rest: None if len(data) == SIZE else carry(data, *rest)  # type: ignore[method-assign]
    async with two(network, CONFIG) as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await anyio.sleep(30)
        assert link.is_open


async def test_forged_beats_keep_nothing_alive_and_cost_the_link_nothing() -> None:
    network = PacketNetwork(Conditions(latency=0.02))
    async with two(network, CONFIG) as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        assert isinstance(link, QuicLink)
        await bob.until_linked(alice)
        beats = link.vitals.pulse._beats
        assert beats is not None
        network.silence("b:1")
        silent_since = anyio.current_time()
        for _ in range(60):
            if not link.is_open:
                break
            forged = b"\x41" + beats.id + os.urandom(SIZE - 9)
            alice.endpoint.packets_received([(forged, link.virtual_address)])
            await anyio.sleep(0.05)
        assert not link.is_open
        assert anyio.current_time() - silent_since < 2.0


# --------------------------------------------------------------------- schedule


def test_each_link_is_due_once_at_the_last_time_it_was_given() -> None:
    schedule = Schedule(0.05)
    one, other, third = (object.__new__(QuicLink) for _ in range(3))
    schedule.set(one, 1.0)
    schedule.set(other, 1.01)
    schedule.set(third, 1.02)
    schedule.set(other, 5.0)
    schedule.set(other, 1.3)
    schedule.drop(third)
    assert schedule.pop(0.99) == []
    assert schedule.pop(1.1) == [one]
    assert schedule.pop(1.29) == []
    assert schedule.pop(1.36) == [other]
    assert schedule.pop(100.0) == []
    assert len(schedule) == 0


def test_a_link_that_is_hastened_is_never_due_later_than_it_was() -> None:
    schedule = Schedule(0.05)
    link = object.__new__(QuicLink)
    schedule.hasten(link, 1.0)
    schedule.hasten(link, 3.0)
    assert schedule.pop(1.0) == [link]
    schedule.set(link, 3.0)
    schedule.hasten(link, 2.0)
    assert schedule.pop(2.0) == [link]
    assert len(schedule) == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 10)), max_size=40), st.floats(0, 10))
def test_nothing_is_due_early_and_nothing_is_forgotten(
    sets: list[tuple[int, float]], now: float
) -> None:
    step = 0.05
    schedule = Schedule(step)
    links = [object.__new__(QuicLink) for _ in range(6)]
    due: dict[int, float] = {}
    for index, at in sets:
        schedule.set(links[index], at)
        due[index] = at
    found = {links.index(link) for link in schedule.pop(now)}
    assert all(due[index] <= now + 1e-9 for index in found)
    assert all(at > now - step for index, at in due.items() if index not in found)
    assert len(schedule) == len(due) - len(found)
