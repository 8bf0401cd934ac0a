"""Chains of grants: what they give, and every way to be refused."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import GrantError
from lattica.identity import wire
from lattica.identity.grants import (
    CALL,
    HOST,
    MAX_CHAIN,
    MEMBER,
    SUBMIT,
    Grant,
    Membership,
    allows,
    issue,
    verify_chain,
)
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed

NOW = 1_000_000.0
MESH, ALICE, BOB, EVE = (Identity(each * 32) for each in (b"m", b"a", b"b", b"e"))


def grant(
    issuer: Identity = MESH,
    subject: Identity = ALICE,
    scopes: tuple[str, ...] = (CALL,),
    *,
    mesh: Identity = MESH,
    expires: float = NOW + 60,
    delegable: bool = False,
) -> Signed:
    return issue(
        issuer,
        mesh=mesh.peer_id,
        subject=subject.peer_id,
        scopes=scopes,
        expires=expires,
        delegable=delegable,
    )


def verify(*chain: Signed, subject: Identity = ALICE, now: float = NOW) -> frozenset[str]:
    return verify_chain(chain, mesh=MESH.peer_id, subject=subject.peer_id, now=now)


def test_no_chain_gives_nothing() -> None:
    assert verify() == frozenset()


def test_a_direct_grant_gives_its_scopes() -> None:
    assert verify(grant(scopes=(CALL, HOST))) == {CALL, HOST}


def test_a_delegable_grant_can_be_handed_on_in_part() -> None:
    chain = (
        grant(scopes=MEMBER, delegable=True),
        grant(ALICE, BOB, (CALL, "write:roster")),
    )
    assert verify(*chain, subject=BOB) == {CALL, "write:roster"}


def test_a_chain_survives_the_wire() -> None:
    membership = Membership(MESH.peer_id, (grant(),))
    again = wire.decode(wire.encode(membership), Membership)
    assert verify(*again.chain) == {CALL}


def test_an_expired_grant_says_since_when_and_what_to_do() -> None:
    with pytest.raises(GrantError, match="expired 5 s ago; ask for a new one"):
        verify(grant(expires=NOW - 5))
    with pytest.raises(GrantError, match="expired"):
        verify(grant(expires=NOW))


def test_an_expiry_that_is_not_a_number_is_no_expiry() -> None:
    with pytest.raises(GrantError):
        verify(grant(expires=float("nan")))


def test_an_expired_link_breaks_the_chain_whatever_follows() -> None:
    with pytest.raises(GrantError, match="expired"):
        verify(
            grant(delegable=True, expires=NOW - 1),
            grant(ALICE, BOB, expires=NOW + 999),
            subject=BOB,
        )


def test_a_forged_grant_is_refused() -> None:
    payload = wire.encode(Grant(MESH.peer_id, EVE.peer_id, MEMBER, NOW + 60))
    forged = Signed(MESH.peer_id, "grant", payload, EVE.sign_bytes(payload))
    with pytest.raises(GrantError, match="forged"):
        verify(forged, subject=EVE)


def test_a_signature_for_another_purpose_is_no_grant() -> None:
    value = Grant(MESH.peer_id, ALICE.peer_id, (CALL,), NOW + 60)
    with pytest.raises(GrantError, match="forged"):
        verify(Signed.seal(MESH, "record", value))


def test_nobody_else_speaks_for_the_mesh() -> None:
    with pytest.raises(GrantError, match="does not lead from mesh"):
        verify(grant(EVE, EVE), subject=EVE)


def test_a_grant_of_another_mesh_is_refused() -> None:
    with pytest.raises(GrantError, match="does not lead from mesh"):
        verify(grant(EVE, ALICE, mesh=EVE))
    with pytest.raises(GrantError, match="does not lead from mesh"):
        verify(grant(MESH, ALICE, mesh=EVE))


def test_more_than_held_cannot_be_handed_on() -> None:
    for wanted in ((SUBMIT,), (CALL, HOST), ("write:*",)):
        with pytest.raises(GrantError, match="handed on scopes"):
            verify(
                grant(scopes=(CALL, "write:roster"), delegable=True),
                grant(ALICE, BOB, wanted),
                subject=BOB,
            )


def test_what_is_not_delegable_ends_there() -> None:
    with pytest.raises(GrantError, match="does not lead"):
        verify(grant(), grant(ALICE, BOB), subject=BOB)


def test_a_step_cannot_be_skipped() -> None:
    first, second = grant(delegable=True), grant(ALICE, BOB, delegable=True)
    third = grant(BOB, EVE)
    assert verify(first, second, third, subject=EVE) == {CALL}
    with pytest.raises(GrantError):
        verify(first, third, subject=EVE)
    with pytest.raises(GrantError):
        verify(second, third, subject=EVE)


def test_anothers_grant_is_of_no_use() -> None:
    with pytest.raises(GrantError, match=f"is for {ALICE.peer_id.short}"):
        verify(grant(), subject=EVE)


def test_chains_have_a_length() -> None:
    people = [MESH, *(Identity(bytes([index]) * 32) for index in range(MAX_CHAIN + 1))]
    steps = [grant(one, other, delegable=True) for one, other in itertools.pairwise(people)]
    assert verify(*steps[:MAX_CHAIN], subject=people[MAX_CHAIN]) == {CALL}
    with pytest.raises(GrantError, match="longer than"):
        verify(*steps, subject=people[-1])


@given(st.sampled_from([0, 1]), st.integers(0, 10_000), st.integers(1, 255))
def test_no_changed_byte_of_a_chain_is_accepted(step: int, index: int, change: int) -> None:
    chain = [grant(delegable=True), grant(ALICE, BOB)]
    raw = bytearray(wire.encode(chain[step]))
    raw[index % len(raw)] ^= change
    try:
        chain[step] = wire.decode(bytes(raw), Signed)
    except (ValueError, msgspec.MsgspecError):
        return
    with pytest.raises(GrantError):
        verify(*chain, subject=BOB)


@pytest.mark.parametrize(
    ("held", "wanted", "expected"),
    [
        ((CALL,), CALL, True),
        ((CALL,), SUBMIT, False),
        ((), CALL, False),
        (("write:*",), "write:roster", True),
        (("write:roster",), "write:roster", True),
        (("write:roster",), "write:other", False),
        (("write:roster",), "write:*", False),
        (("write:*",), CALL, False),
        (MEMBER, "write:anything", True),
    ],
)
def test_scopes_cover(held: tuple[str, ...], wanted: str, expected: bool) -> None:
    assert allows(held, wanted) is expected


def test_a_peer_id_in_a_grant_must_be_one() -> None:
    raw = wire.encode([b"short", PeerId(bytes(32)), [CALL], NOW, False])
    signed = Signed(MESH.peer_id, "grant", raw, b"")
    with pytest.raises(GrantError):
        verify(signed)
