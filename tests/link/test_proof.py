"""The proof: who may link, and every way to be refused. No I/O."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import (
    CrossMeshError,
    LinkError,
    LinkRefusedError,
    ProofError,
    SelfDialError,
    VersionError,
    WrongPeerError,
)
from lattica.identity import tickets, wire
from lattica.identity.grants import CALL, HOST, Grant, Membership, issue
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed
from lattica.link.messages import MAX_HELLO, Hello
from lattica.link.proof import Proof, Role, Step
from tests.link.helpers import ALICE, BOB, CAROL, MESH, member

NOW = 1_000_000.0
BINDING = b"b" * 32
STRANGER = Membership(MESH.peer_id)


def dialer(
    identity: Identity = ALICE,
    *,
    membership: Membership = STRANGER,
    expected: PeerId | None = BOB.peer_id,
    binding: bytes = BINDING,
    name: str = "alice",
) -> Proof:
    return Proof(identity, membership, name, role=Role.DIALER, binding=binding, expected=expected)


def acceptor(
    identity: Identity = BOB, *, membership: Membership = STRANGER, binding: bytes = BINDING
) -> Proof:
    return Proof(identity, membership, "bob", role=Role.ACCEPTOR, binding=binding)


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def test_both_ends_learn_who_the_other_is() -> None:
    one, other = dialer(membership=member(ALICE)), acceptor()
    assert other.receive(one.hello(), NOW) is Step.PROVEN
    assert one.receive(other.hello(), NOW) is Step.PROVEN
    assert other.receive(one.confirm(), NOW) is Step.CONFIRMED
    assert other.remote is not None
    assert other.remote.peer == ALICE.peer_id
    assert other.remote.scopes == {CALL}
    assert other.remote.name == "alice"
    assert other.remote.root == ALICE.peer_id  # nobody vouches for her but the mesh
    assert one.remote is not None
    assert one.remote.peer == BOB.peer_id
    assert one.remote.scopes == frozenset()  # a stranger
    assert one.remote.root is None


def test_a_hello_may_arrive_byte_by_byte() -> None:
    other = acceptor()
    hello = dialer().hello()
    steps = [other.receive(hello[index : index + 1], NOW) for index in range(len(hello))]
    assert steps[-1] is Step.PROVEN
    assert set(steps[:-1]) == {Step.WAITING}


def test_a_dialer_may_take_whoever_answers() -> None:
    one, other = dialer(expected=None), acceptor()
    other.receive(one.hello(), NOW)
    assert one.receive(other.hello(), NOW) is Step.PROVEN


def test_a_proof_of_another_session_does_not_hold() -> None:
    with pytest.raises(ProofError, match="does not hold"):
        acceptor(binding=os.urandom(32)).receive(dialer().hello(), NOW)


def test_the_one_in_the_middle_cannot_pass_a_proof_on() -> None:
    # Carol ends TLS towards both: two sessions, two bindings.
    towards_alice, towards_bob = os.urandom(32), os.urandom(32)
    alice = dialer(binding=towards_alice)
    with pytest.raises(ProofError):
        acceptor(binding=towards_bob).receive(alice.hello(), NOW)


def test_a_reflected_hello_is_refused() -> None:
    one = dialer(expected=None)
    with pytest.raises(SelfDialError):
        one.receive(one.hello(), NOW)


def test_a_proof_for_one_role_does_not_serve_in_the_other() -> None:
    with pytest.raises(ProofError):
        dialer(BOB, expected=None).receive(dialer(ALICE, expected=BOB.peer_id).hello(), NOW)


def test_a_claimed_key_needs_its_signature() -> None:
    honest = dialer(CAROL)
    raw = honest.hello()[4:]
    hello = wire.decode(raw, Hello)
    forged = Hello(
        hello.version, ALICE.peer_id, hello.to, hello.membership, hello.name, hello.signature
    )
    with pytest.raises(ProofError):
        acceptor().receive(frame(wire.encode(forged)), NOW)


def test_the_dialer_refuses_another_peer_than_it_wanted() -> None:
    one, carol = dialer(expected=None), acceptor(CAROL)
    carol.receive(one.hello(), NOW)
    picky = dialer(expected=BOB.peer_id)
    with pytest.raises(WrongPeerError, match=BOB.peer_id.short):
        picky.receive(carol.hello(), NOW)


def test_the_acceptor_refuses_a_dialer_that_wanted_another() -> None:
    with pytest.raises(WrongPeerError):
        acceptor(CAROL).receive(dialer(expected=BOB.peer_id).hello(), NOW)


def test_an_answer_must_name_its_dialer() -> None:
    # An acceptor's Hello made before it knew the dialer could be meant for anybody.
    with pytest.raises(ProofError, match="names no dialer"):
        dialer().receive(acceptor().hello(), NOW)


def test_another_mesh_is_refused_even_without_a_grant() -> None:
    elsewhere = Membership(CAROL.peer_id)
    with pytest.raises(CrossMeshError):
        acceptor().receive(dialer(membership=elsewhere).hello(), NOW)


def test_a_grant_of_another_mesh_is_refused() -> None:
    foreign = Membership(MESH.peer_id, member(ALICE, mesh=CAROL).chain)
    with pytest.raises(LinkRefusedError, match="does not lead from mesh"):
        acceptor().receive(dialer(membership=foreign).hello(), NOW)


def test_an_expired_grant_is_refused_with_its_cure() -> None:
    with pytest.raises(LinkRefusedError, match=r"expired 1 s ago; ask for a new one"):
        acceptor().receive(dialer(membership=member(ALICE, expires=NOW - 1)).hello(), NOW)


def test_the_end_of_the_grant_is_known() -> None:
    other = acceptor()
    other.receive(dialer(membership=member(ALICE, expires=NOW + 9)).hello(), NOW)
    assert other.expires == NOW + 9


def test_a_forged_grant_is_refused() -> None:
    grant = Grant(MESH.peer_id, ALICE.peer_id, (HOST,), NOW + 60)
    forged = Signed(MESH.peer_id, "grant", wire.encode(grant), bytes(64))
    with pytest.raises(LinkRefusedError, match="forged"):
        acceptor().receive(dialer(membership=Membership(MESH.peer_id, (forged,))).hello(), NOW)


def test_anothers_grant_is_refused() -> None:
    with pytest.raises(LinkRefusedError, match="is for"):
        acceptor().receive(dialer(membership=member(CAROL)).hello(), NOW)


def test_the_root_of_who_joined_by_a_ticket_is_the_ticket() -> None:
    ticket = tickets.issue(MESH, [], now=NOW, valid_for=60.0, scopes=[CALL])
    roots = set()
    for joiner in (ALICE, CAROL):  # with as many keys as they like
        other = acceptor()
        other.receive(
            dialer(joiner, membership=ticket.redeem(joiner.peer_id, now=NOW)).hello(), NOW
        )
        assert other.remote is not None
        roots.add(other.remote.root)
    assert roots == {Identity(ticket.invite_seed).peer_id}


def test_an_over_long_chain_is_refused() -> None:
    step = issue(
        MESH,
        mesh=MESH.peer_id,
        subject=MESH.peer_id,
        scopes=[CALL],
        expires=NOW + 60,
        delegable=True,
    )
    with pytest.raises(LinkRefusedError, match="longer than"):
        acceptor().receive(dialer(membership=Membership(MESH.peer_id, (step,) * 9)).hello(), NOW)


@pytest.mark.parametrize("version", [0, 2, 99])
def test_another_version_is_told_as_such_whatever_follows(version: int) -> None:
    with pytest.raises(VersionError, match=f"version {version} meets version 1"):
        acceptor().receive(frame(wire.encode([version, "fields", "we", {"do": "not know"}])), NOW)


@pytest.mark.parametrize("length", [0, MAX_HELLO + 1, 2**32 - 1])
def test_the_announced_length_is_bounded_before_anything_is_kept(length: int) -> None:
    with pytest.raises(LinkRefusedError, match="at most"):
        acceptor().receive(length.to_bytes(4, "big"), NOW)


def test_nothing_may_follow_a_hello_before_the_answer() -> None:
    with pytest.raises(LinkRefusedError, match="bytes after the hello"):
        acceptor().receive(dialer().hello() + bytes(4), NOW)


def test_only_a_confirmation_may_follow_the_answer() -> None:
    other = acceptor()
    other.receive(dialer().hello(), NOW)
    with pytest.raises(LinkRefusedError):
        other.receive(b"\0\0\0\1x", NOW)


def test_an_acceptor_says_nothing_more() -> None:
    one, other = dialer(), acceptor()
    other.receive(one.hello(), NOW)
    one.receive(other.hello(), NOW)
    with pytest.raises(LinkRefusedError):
        one.receive(bytes(4), NOW)


def test_a_name_cannot_carry_control_characters_or_be_endless() -> None:
    other = acceptor()
    other.receive(dialer(name="\x1b[31mred\n" + "x" * 500).hello(), NOW)
    assert other.remote is not None
    assert other.remote.name.startswith("?[31mred?")
    assert len(other.remote.name) == 64


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_refuse(body: bytes) -> None:
    other = acceptor()
    with pytest.raises(LinkError):
        other.receive(frame(body), NOW)
    assert other.remote is None


@given(st.data())
def test_no_change_of_a_hello_is_accepted(data: st.DataObject) -> None:
    hello = bytearray(dialer(membership=member(ALICE)).hello())
    index = data.draw(st.integers(4, len(hello) - 1))
    hello[index] ^= data.draw(st.integers(1, 255))
    other = acceptor()
    try:
        other.receive(bytes(hello), NOW)
    except LinkError:
        assert other.remote is None
    else:
        # Only what says nothing about rights may differ: the name a peer calls itself.
        assert other.remote is not None
        assert other.remote.peer == ALICE.peer_id
        assert other.remote.scopes == {CALL}
