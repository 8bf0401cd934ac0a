"""Who may do what: grants signed by the mesh's authority key, handed on in chains.

A mesh *is* its authority's PeerId. A grant names a subject, scopes and an expiry; a
delegable grant lets its subject hand on no more than it holds. So a ticket carries a
grant to a throw-away invite key, and the joiner signs the last step to its own key:
nobody needs to be asked, and the authority may be offline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from lattica.errors import GrantError, SignatureError
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed

DOMAIN = "grant"
MAX_CHAIN = 4

CALL = "call"  # call services that ask for it
SUBMIT = "submit"  # submit pickled functions, actors and values
HOST = "host"  # run other peers' work, hold their actors
RELAY = "relay"  # forward other peers' packets
WRITE = "write:"  # write:<document>
MEMBER = (CALL, SUBMIT, HOST, RELAY, WRITE + "*")


class Grant(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One step of a chain: the envelope's author allows `subject` the `scopes`."""

    mesh: PeerId
    subject: PeerId
    scopes: tuple[str, ...]
    expires: float  # seconds since the Unix epoch
    delegable: bool = False


class Membership(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a peer shows when it meets another: its mesh and its chain of grants."""

    mesh: PeerId
    chain: tuple[Signed, ...] = ()


def issue(
    issuer: Identity,
    *,
    mesh: PeerId,
    subject: PeerId,
    scopes: Iterable[str],
    expires: float,
    delegable: bool = False,
) -> Signed:
    """Sign one grant."""
    return Signed.seal(issuer, DOMAIN, Grant(mesh, subject, tuple(scopes), expires, delegable))


def verify_chain(
    chain: Sequence[Signed], *, mesh: PeerId, subject: PeerId, now: float
) -> frozenset[str]:
    """The scopes that `chain` gives `subject` in `mesh`; none for an empty chain.

    Raises:
        GrantError: the chain is forged, expired, of another mesh, or not for `subject`.
    """
    if not chain:
        return frozenset()
    if len(chain) > MAX_CHAIN:
        raise GrantError(f"a chain of {len(chain)} grants is longer than {MAX_CHAIN}")
    issuer, scopes, delegable = mesh, None, True
    for step in chain:
        try:
            grant = step.open(DOMAIN, Grant)
        except SignatureError as error:
            raise GrantError(f"a grant of the chain is forged: {error}") from None
        if grant.mesh != mesh or step.author != issuer or not delegable:
            raise GrantError(f"the chain of grants does not lead from mesh {mesh.short}")
        if not grant.expires > now:  # so that NaN has expired too
            raise GrantError(
                f"the grant expired {now - grant.expires:.0f} s ago; ask for a new one"
            )
        if scopes is None:
            scopes = frozenset(grant.scopes)
        elif not all(allows(scopes, scope) for scope in grant.scopes):
            raise GrantError(f"{issuer.short} handed on scopes that it does not hold")
        else:
            scopes = frozenset(grant.scopes)
        issuer, delegable = grant.subject, grant.delegable
    if issuer != subject:
        raise GrantError(f"the grant is for {issuer.short}, not for {subject.short}")
    assert scopes is not None
    return scopes


def root_of(chain: Sequence[Signed]) -> PeerId | None:
    """Whom the mesh's authority itself has let in: a ticket's key, or the peer; None: nobody.

    All who joined by one ticket have one root, however many keys they make. The chain is one
    that `verify_chain` has found good.
    """
    return chain[0].open(DOMAIN, Grant).subject if chain else None


def allows(scopes: Iterable[str], wanted: str) -> bool:
    """Whether `scopes` cover `wanted`; `write:*` covers every document."""
    held = frozenset(scopes)
    return wanted in held or (wanted.startswith(WRITE) and WRITE + "*" in held)
