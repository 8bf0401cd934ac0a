"""Who is refused, and what both ends are told."""

from __future__ import annotations

import pytest

from lattica.clock import ManualClock
from lattica.errors import (
    CrossMeshError,
    LinkRefusedError,
    SelfDialError,
    UnknownPeerError,
    WrongPeerError,
)
from lattica.identity.grants import CALL, Membership
from lattica.path.memory import PacketNetwork
from tests.link.helpers import ALICE, BOB, CAROL, MESH, member, peer, two

pytestmark = pytest.mark.anyio


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
