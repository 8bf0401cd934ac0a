"""Tickets: one line that can be copied, and a typo that is told as a typo."""

from __future__ import annotations

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import TicketExpiredError, TicketForeignError, TicketMangledError
from lattica.identity import grants, tickets, wire
from lattica.identity.keys import Identity
from lattica.identity.tickets import DAY, Contact, Ticket

NOW = 1_000_000.0
MESH, FIRST, JOINER, EVE = (Identity(each * 32) for each in (b"m", b"f", b"j", b"e"))
CONTACTS = (Contact(FIRST.peer_id, ("192.0.2.7:4242", "[2001:db8::7]:4242")),)
TICKET = tickets.issue(MESH, CONTACTS, now=NOW)
LINE = TICKET.encode()


def test_a_ticket_is_one_line_and_comes_back() -> None:
    assert "\n" not in LINE
    assert " " not in LINE
    assert len(LINE) < 1000
    assert tickets.parse(LINE) == TICKET


def test_line_breaks_and_spaces_of_a_terminal_do_no_harm() -> None:
    wrapped = "\n  ".join(LINE[start : start + 40] for start in range(0, len(LINE), 40))
    assert tickets.parse(f"  {wrapped}\r\n") == TICKET


def test_redeeming_gives_the_granted_scopes_to_the_joiner_only() -> None:
    membership = TICKET.redeem(JOINER.peer_id, now=NOW)
    assert membership.mesh == MESH.peer_id
    verify = grants.verify_chain
    chain = membership.chain
    assert verify(chain, mesh=MESH.peer_id, subject=JOINER.peer_id, now=NOW) == set(grants.MEMBER)
    with pytest.raises(grants.GrantError):
        verify(chain, mesh=MESH.peer_id, subject=EVE.peer_id, now=NOW)


def test_a_joiner_cannot_hand_its_grant_on() -> None:
    chain = TICKET.redeem(JOINER.peer_id, now=NOW).chain
    step = grants.issue(
        JOINER, mesh=MESH.peer_id, subject=EVE.peer_id, scopes=[grants.CALL], expires=NOW + 9
    )
    with pytest.raises(grants.GrantError):
        grants.verify_chain((*chain, step), mesh=MESH.peer_id, subject=EVE.peer_id, now=NOW)


def test_fewer_scopes_may_be_given() -> None:
    ticket = tickets.issue(MESH, CONTACTS, now=NOW, scopes=[grants.CALL])
    chain = ticket.redeem(JOINER.peer_id, now=NOW).chain
    held = grants.verify_chain(chain, mesh=MESH.peer_id, subject=JOINER.peer_id, now=NOW)
    assert held == {grants.CALL}


def test_an_expired_ticket_names_the_cure() -> None:
    with pytest.raises(TicketExpiredError, match=r"expired 10 s ago.*lattica invite"):
        TICKET.redeem(JOINER.peer_id, now=NOW + 7 * DAY + 10)
    short = tickets.issue(MESH, CONTACTS, now=NOW, valid_for=60)
    short.redeem(JOINER.peer_id, now=NOW + 59)
    with pytest.raises(TicketExpiredError):
        short.redeem(JOINER.peer_id, now=NOW + 60)


def test_an_expiry_that_is_not_a_number_has_expired() -> None:
    with pytest.raises(TicketExpiredError):
        tickets.issue(MESH, CONTACTS, now=NOW, valid_for=float("nan")).redeem(
            JOINER.peer_id, now=NOW
        )


def test_every_typo_of_one_character_is_told_as_a_typo() -> None:
    for index, right in enumerate(LINE):
        for wrong in "aZ0_-:.é":
            if wrong != right:
                with pytest.raises(TicketMangledError):
                    tickets.parse(LINE[:index] + wrong + LINE[index + 1 :])


def test_every_lost_or_doubled_character_is_told_as_a_typo() -> None:
    for index in range(len(LINE)):
        with pytest.raises(TicketMangledError):
            tickets.parse(LINE[:index] + LINE[index + 1 :])
        with pytest.raises(TicketMangledError):
            tickets.parse(LINE[: index + 1] + LINE[index:])


def test_swapped_neighbours_are_told_as_a_typo() -> None:
    for index in range(len(LINE) - 1):
        one, other = LINE[index : index + 2]
        if one != other:
            with pytest.raises(TicketMangledError):
                tickets.parse(LINE[:index] + other + one + LINE[index + 2 :])


def test_a_cut_ticket_is_told_as_such() -> None:
    for length in range(len(LINE)):
        with pytest.raises(TicketMangledError):
            tickets.parse(LINE[:length])


@given(st.text(max_size=200))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    for line in (text, tickets.PREFIX + text):
        with pytest.raises(TicketMangledError):
            tickets.parse(line)


@given(st.binary(max_size=300))
def test_a_right_checksum_over_garbage_is_refused(raw: bytes) -> None:
    with pytest.raises(TicketMangledError):
        tickets.parse(_line(raw))


def test_an_endless_ticket_is_refused() -> None:
    with pytest.raises(TicketMangledError):
        tickets.parse(_line(bytes(100_000)))


def test_a_grant_that_nobody_signed_is_foreign() -> None:
    forged = msgspec.structs.replace(TICKET.chain[0], signature=bytes(64))
    with pytest.raises(TicketForeignError):
        tickets.parse(msgspec.structs.replace(TICKET, chain=(forged,)).encode())


def test_a_grant_of_another_mesh_is_foreign() -> None:
    theirs = tickets.issue(EVE, CONTACTS, now=NOW)
    mixed = msgspec.structs.replace(theirs, mesh=MESH.peer_id)
    with pytest.raises(TicketForeignError):
        tickets.parse(mixed.encode()).redeem(JOINER.peer_id, now=NOW)


def test_a_grant_for_another_invite_key_is_foreign() -> None:
    other = msgspec.structs.replace(TICKET, invite_seed=EVE.seed)
    with pytest.raises(TicketForeignError):
        tickets.parse(other.encode()).redeem(JOINER.peer_id, now=NOW)


@pytest.mark.parametrize("change", [{"chain": ()}, {"invite_seed": b"short"}])
def test_a_ticket_without_a_grant_or_key_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(TicketMangledError):
        tickets.parse(msgspec.structs.replace(TICKET, **change).encode())


def _line(raw: bytes) -> str:
    body = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    return f"{tickets.PREFIX}{body}.{tickets._checksum(body)}"


def test_the_checksum_helper_makes_real_tickets() -> None:
    assert isinstance(tickets.parse(_line(wire.encode(TICKET))), Ticket)
