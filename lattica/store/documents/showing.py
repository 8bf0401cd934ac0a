"""Answering a glance with what proves it: the envelopes that wrote what is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import anyio
import anyio.to_thread
import msgspec

from lattica.identity.grants import Membership
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed
from lattica.store.chains.messages import Notices
from lattica.store.chains.replica import Replica
from lattica.store.crdt.kinds import MAP, Id
from lattica.store.crdt.update import live_units
from lattica.store.documents.document import Document
from lattica.store.documents.glances import MAX_GLANCE, Glance, glance_at, place_of_root
from lattica.store.documents.shelf import CHUNK, Shelf
from lattica.store.documents.writers import find_envelopes

MAX_PROOFS = 1024  # envelopes in one answer

Envelopes = Annotated[tuple[Signed, ...], msgspec.Meta(max_length=MAX_PROOFS)]
Memberships = Annotated[tuple[tuple[PeerId, Membership], ...], msgspec.Meta(max_length=MAX_PROOFS)]


class Shown(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What roots hold, and what proves it."""

    values: Glance
    envelopes: Envelopes = ()  # that wrote it, as far as they fit
    memberships: Memberships = ()  # what allowed their authors to
    notices: Notices = ()  # what cuts their authors' chains


async def show(document: Document, replica: Replica, shelf: Shelf, roots: Sequence[str]) -> Shown:
    """What this peer has of these roots, of maps with proofs.

    Raises:
        DocumentError: a root's name tells no kind, or it is too much.
        StoreError: envelopes cannot be read from disk.
    """
    values, state = glance_at(document, roots), replica.state
    wanted = {(place.kind, place.name) for place in map(place_of_root, roots)}
    if state.writing or all(kind != MAP for kind, _ in wanted):
        return Shown(values)
    # Read now, and parsed in a thread: it is the whole document. The ledger only grows.
    whole, ledger = state.whole(), state.ledger
    live = await anyio.to_thread.run_sync(lambda: list(live_units(whole)))
    units: list[Id] = []
    for start in range(0, len(live), CHUNK):
        await anyio.lowlevel.checkpoint()
        for unit in live[start : start + CHUNK]:
            place = ledger.place_at(*unit)
            if place.kind == MAP and place[:2] in wanted:
                units.append(unit)
    found = await find_envelopes(replica, shelf, units[:MAX_PROOFS])
    envelopes = _fitting(found.values())
    authors = dict.fromkeys(envelope.author for envelope in envelopes)
    chains = [replica.chains[author] for author in authors if author in replica.chains]
    return Shown(
        values,
        envelopes,
        tuple((chain.author, chain.membership) for chain in chains if chain.membership),
        replica.notices.about(authors),
    )


def _fitting(envelopes: Iterable[Signed]) -> tuple[Signed, ...]:
    """Each once, as many as an answer takes."""
    chosen: dict[bytes, Signed] = {}
    size = 0
    for envelope in envelopes:
        if envelope.signature in chosen:
            continue
        size += len(envelope.payload)
        if size > MAX_GLANCE:
            break
        chosen[envelope.signature] = envelope
    return tuple(chosen.values())
