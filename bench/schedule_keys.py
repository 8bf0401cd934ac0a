"""Who takes part in a schedule: keys and grants that are the same in every run."""

from __future__ import annotations

from lattica.identity import grants
from lattica.identity.grants import Membership
from lattica.identity.keys import Identity

NOW = 1_000_000.0
NAME = "schedule"
AUTHORITY = Identity(b"authority".ljust(32, b"-"))


def identity(number: int) -> Identity:
    """The same key for the same number, in every run."""
    return Identity(number.to_bytes(32, "big"))


def membership(member: Identity, *scopes: str, expires: float = NOW + 3600) -> Membership:
    """A grant signed by the authority; by default everything a member has."""
    grant = grants.issue(
        AUTHORITY,
        mesh=AUTHORITY.peer_id,
        subject=member.peer_id,
        scopes=scopes or grants.MEMBER,
        expires=expires,
    )
    return Membership(AUTHORITY.peer_id, (grant,))
