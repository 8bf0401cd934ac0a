"""Peers for the store's tests: keys, grants, replicas, and a memory mesh."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio

from lattica.clock import ManualClock
from lattica.config import StoreConfig
from lattica.identity import grants
from lattica.identity.grants import Membership
from lattica.identity.keys import Identity, PeerId
from lattica.identity.signed import Signed
from lattica.store import Change, Document
from lattica.store.chains.chain import Link
from lattica.store.chains.messages import DOMAIN, GENESIS, Update
from lattica.store.chains.replica import Replica

NOW = 1_000_000.0
HOUR = 3600.0
NAME = "roster"

authority = Identity(b"authority".ljust(32, b"-"))


def identity(number: int) -> Identity:
    """The same key for the same number, in every run."""
    return Identity(number.to_bytes(32, "big"))


def membership(
    member: Identity, *scopes: str, expires: float = NOW + HOUR, by: Identity = authority
) -> Membership:
    """A grant signed by the authority; by default everything a member has."""
    grant = grants.issue(
        by,
        mesh=authority.peer_id,
        subject=member.peer_id,
        scopes=scopes or grants.MEMBER,
        expires=expires,
    )
    return Membership(authority.peer_id, (grant,))


def replica(
    number: int, *scopes: str, config: StoreConfig | None = None, name: str = NAME
) -> Replica:
    """A replica of a peer that may do `scopes`."""
    member = identity(number)
    return Replica(name, member, membership(member, *scopes), config or StoreConfig())


def write(target: Replica, key: str, value: bytes, *, now: float = NOW, name: str = "m") -> Signed:
    """One transaction; the envelope that it makes. `value` must be canonical."""
    with target.transaction(now) as links:
        target.state.map(name)[key] = value
    return links[0].envelope


def receive(target: Replica, envelope: Signed) -> list[Link] | None:
    """Hand a replica one envelope: what it accepts; None if the envelope waits.

    Raises:
        RefusedError: it is refused.
    """
    taken = target.receive((envelope,))
    for refusal in taken.refusals:
        if refusal.envelope == envelope:
            raise refusal.error
    return None if taken.waiting else taken.links


def sync(one: Replica, other: Replica) -> None:
    """A whole exchange, both ways, over and over while it brings anything."""
    before = None
    while (
        now := (one.heads(), one.notices.marks(), other.heads(), other.notices.marks())
    ) != before:
        before = now
        for giver, taker in ((one, other), (other, one)):
            taker.learn(giver.lacking(taker.notices.marks()))
            taker.receive(giver.contradictions(taker.heads()))
            batch = giver.missing(taker.heads(), limit=10**9)
            assert batch is not None
            taker.receive(batch.envelopes)


def read(target: Replica, name: str = "m") -> dict[str, bytes]:
    """The content of a map."""
    return {key: bytes(value) for key, value in target.state.map(name).items()}


def seal(
    number: int,
    body: bytes,
    *,
    sequence: int = 1,
    previous: bytes = GENESIS,
    written: float = NOW,
    shown: Membership | None = None,
    document: str = NAME,
) -> Signed:
    """An envelope as an author that ignores the rules may make it."""
    member = identity(number)
    update = Update(authority.peer_id, document, sequence, previous, written, body, shown)
    return Signed.seal(member, DOMAIN, update)


def home(base: Path, number: int) -> Path:
    """A peer's directory."""
    return base / f"peer-{number}"


async def until_equal(*documents: Document, within: float = 10.0) -> None:
    """Wait until all of them read the same."""
    with anyio.fail_after(within):
        while True:
            # Watched before they are compared: a change while the tasks start is not missed.
            watches = [document.watch() for document in documents]
            if len({document.digest() for document in documents}) == 1:
                return
            async with anyio.create_task_group() as tasks:

                async def woken(watch: AsyncIterator[Change]) -> None:
                    await anext(watch)
                    tasks.cancel_scope.cancel()

                for watch in watches:
                    tasks.start_soon(woken, watch)


def document(number: int, *scopes: str, name: str = NAME) -> Document:
    """A document without disk or links; `meet` is how its copies come to know each other."""

    async def nothing() -> None: ...

    async def rule(subject: PeerId, *, until: float | None) -> None: ...

    async def nowhere() -> AsyncIterator[Sequence[Link]]:
        for links in ():
            yield links

    return Document(
        replica(number, *scopes, name=name),
        ManualClock(NOW),
        wrote=lambda _link: None,
        flush=nothing,
        synced=nothing,
        rule=rule,
        compact=nothing,
        archived=nowhere,
    )


def meet(*documents: Document) -> None:
    """All tell each other all they have; nothing may be refused."""
    replicas = [document._replica for document in documents]
    for _ in replicas:
        for giver in replicas:
            for taker in replicas:
                batch = giver.missing(taker.heads(), limit=10**9)
                assert batch is not None
                assert not taker.receive(batch.envelopes).refusals
    assert len({each.state.digest() for each in replicas}) == 1
