"""Tickets: all that a second machine needs, as one line that can be copied.

`lattica:` + base64url(MessagePack) + 8 hex digits of BLAKE2 over the body, so that a
typo is told as a typo before anything else is looked at.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence

import msgspec

from lattica.errors import (
    GrantError,
    SignatureError,
    TicketExpiredError,
    TicketForeignError,
    TicketMangledError,
)
from lattica.identity import grants, wire
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed

PREFIX = "lattica:"
MAX_TICKET = 8192  # characters
DAY = 86_400.0


class Contact(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A peer and where it was last seen, as `host:port` addresses."""

    peer: PeerId
    addresses: tuple[str, ...]


class Ticket(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Addresses to start from, and an invite key with a delegable grant."""

    mesh: PeerId
    contacts: tuple[Contact, ...]
    chain: tuple[Signed, ...]
    invite_seed: bytes

    def encode(self) -> str:
        """The ticket as one line."""
        body = base64.urlsafe_b64encode(wire.encode(self)).decode().rstrip("=")
        return f"{PREFIX}{body}.{_checksum(body)}"

    def redeem(self, subject: PeerId, *, now: float) -> grants.Membership:
        """The membership that this ticket gives `subject`.

        Raises:
            TicketExpiredError: the grant has run out.
            TicketForeignError: the grant does not come from the ticket's mesh.
        """
        invite = Identity(self.invite_seed)
        last = self.chain[-1].open(grants.DOMAIN, grants.Grant)
        if not last.expires > now:  # so that NaN has expired too
            raise TicketExpiredError(
                f"the ticket expired {now - last.expires:.0f} s ago; "
                "ask the machine that made it for a new one: lattica invite"
            )
        step = grants.issue(
            invite, mesh=self.mesh, subject=subject, scopes=last.scopes, expires=last.expires
        )
        membership = grants.Membership(self.mesh, (*self.chain, step))
        try:
            grants.verify_chain(membership.chain, mesh=self.mesh, subject=subject, now=now)
        except GrantError as error:
            raise TicketForeignError(f"the ticket's grant is not its mesh's: {error}") from None
        return membership


def issue(
    authority: Identity,
    contacts: Iterable[Contact],
    *,
    now: float,
    valid_for: float = 7 * DAY,
    scopes: Sequence[str] = grants.MEMBER,
) -> Ticket:
    """A new ticket, signed by the mesh's authority and good for `valid_for` seconds."""
    invite = Identity.generate()
    grant = grants.issue(
        authority,
        mesh=authority.peer_id,
        subject=invite.peer_id,
        scopes=scopes,
        expires=now + valid_for,
        delegable=True,
    )
    return Ticket(authority.peer_id, tuple(contacts), (grant,), invite.seed)


def parse(text: str) -> Ticket:
    """Read a ticket.

    Raises:
        TicketMangledError: not a ticket, or mistyped, or cut.
    """
    line = "".join(text.split())
    if not line.startswith(PREFIX):
        raise TicketMangledError(
            f"a ticket starts with {PREFIX!r}; this is {line[:16]!r}. Copy the whole line"
        )
    match = re.fullmatch(r"([A-Za-z0-9_-]+)\.([0-9a-f]{8})", line[len(PREFIX) :])
    if len(line) > MAX_TICKET or match is None or _checksum(match[1]) != match[2]:
        raise TicketMangledError(
            "the ticket's checksum does not match: a character was mistyped or the end was cut. "
            "Copy the whole line again"
        )
    body = match[1]
    try:
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        ticket = wire.decode(raw, Ticket)
        if not ticket.chain or len(ticket.invite_seed) != 32:
            raise ValueError("no grant")
        ticket.chain[-1].open(grants.DOMAIN, grants.Grant)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise TicketMangledError(f"the ticket does not decode: {error}") from None
    except SignatureError as error:
        raise TicketForeignError(f"the ticket's grant does not verify: {error}") from None
    return ticket


def _checksum(body: str) -> str:
    return hashlib.blake2s(body.encode(), digest_size=4, person=b"ticket").hexdigest()
