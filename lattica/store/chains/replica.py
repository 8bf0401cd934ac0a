"""One peer's copy of a document, sans I/O: envelopes go in, content and envelopes come out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lattica.errors import DocumentError, GrantError
from lattica.identity import grants
from lattica.identity.grants import Membership
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed
from lattica.store.chains.chain import Link, standing
from lattica.store.chains.held import Snapshot
from lattica.store.chains.messages import (
    DOMAIN,
    MAX_STATED,
    MAX_STATED_BYTES,
    Head,
    Mark,
    Notice,
    Update,
    envelope_hash,
)
from lattica.store.chains.reading import Incoming
from lattica.store.chains.sending import Batch, contradictions, missing
from lattica.store.chains.taking import Refusal, Taken, Taking
from lattica.store.crdt.kinds import Place
from lattica.store.crdt.quick import read_body

__all__ = ["Refusal", "Replica", "Snapshot", "Taken"]


class Replica(Taking):
    """A document's content, its authors' chains, and the rules for taking more in."""

    @property
    def membership(self) -> Membership:
        """What allows this peer to write: its ticket, or a ruling in the document."""
        ground = standing(self._membership, self._identity.peer_id)
        granted = self.notices.granted(self._identity.peer_id)
        if granted is None or grants.allows(ground.scopes, self._scope):
            return self._membership
        return granted

    def require_write(self, now: float) -> None:
        """Check that this peer may write.

        Raises:
            GrantError: it holds no `write:<document>` grant, or the grant has expired.
        """
        ground = standing(self.membership, self._identity.peer_id)
        if not grants.allows(ground.scopes, self._scope):
            raise GrantError(
                f"this peer's ticket does not grant {self._scope!r}; "
                "ask the mesh's authority for a ticket that does, or for a grant in the document"
            )
        if ground.expires <= now:
            raise GrantError(f"this peer's grant {self._scope!r} has expired; join again")
        cut = self.notices.cut(self._identity.peer_id)
        if cut is not None and cut.reason == "revoked":
            raise GrantError(f"this peer's grant {self._scope!r} was revoked")

    @contextlib.contextmanager
    def transaction(self, now: float) -> Iterator[list[Link]]:
        """Group writes to `state`; the yielded list holds the new link afterwards.

        A transaction that raises changes nothing.

        Raises:
            GrantError: see `require_write`.
            DocumentError: what was written is too large.
        """
        self.require_write(now)
        own = self._chain(self._identity.peer_id)
        if own.stuck or own.upto is not None:
            raise DocumentError(
                f"this peer's writes to {self.name!r} contradict earlier ones, which all peers "
                "have been shown; to write again, join with a new identity"
            )
        result: list[Link] = []
        before = self.state.version
        try:
            with self.state.transaction():
                yield result
            body = self.state.take_written()
            if body is not None:
                result.append(self._seal(body, now))
        except BaseException:
            if self.state.version == before:
                self.state.abort()
            else:
                self._rebuild()  # interrupted while it was taken in
            raise

    def _seal(self, body: bytes, now: float) -> Link:
        if len(body) > self._config.max_update:
            raise DocumentError(
                f"{len(body)} bytes in one transaction, at most {self._config.max_update} "
                "are allowed; put large values into blocks"
            )
        facts = read_body(body)
        chain = self._chain(self._identity.peer_id)
        membership = None if self._shown == self.membership else self.membership
        reading = self.state.judge(facts)
        update = Update(
            self.mesh,
            self.name,
            chain.head + 1,
            chain.head_hash,
            max(now, chain.written),
            body,
            membership,
            _stated(reading.replacing),
        )
        envelope = Signed.seal(self._identity, DOMAIN, update)
        self._require_room(chain, envelope)
        chain.check(update, membership, self.mesh, self._scope)
        self.state.wrote(body, facts, reading)
        return self._append(chain, Incoming(envelope, envelope_hash(envelope), update, True))

    def missing(
        self,
        theirs: Iterable[Head],
        *,
        limit: int,
        committed: Mapping[PeerId, int] | None = None,
    ) -> Batch | None:
        """What a peer with the heads `theirs` lacks: see `sending.missing`."""
        return missing(self.chains.values(), theirs, limit=limit, committed=committed)

    def contradictions(self, theirs: Iterable[Head]) -> tuple[Signed, ...]:
        """Our envelopes where a peer holds others: to show it that their authors forked."""
        return contradictions(self.chains, theirs)

    def lacking(self, theirs: Iterable[Mark]) -> tuple[Notice, ...]:
        """Notices that a peer does not know."""
        return self.notices.lacking(theirs)


def _stated(places: Sequence[Place]) -> tuple[tuple[str, str, str], ...]:
    """The places that an update states: all of them, or none where they are too many."""
    size = sum(len(place.name.encode()) + len((place.key or "").encode()) for place in places)
    if len(places) > MAX_STATED or size > MAX_STATED_BYTES:
        return ()
    return tuple((place.kind, place.name, place.key or "") for place in places)
