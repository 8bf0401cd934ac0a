"""Glances that prove themselves: what the asking peer makes of the answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import anyio

from lattica.errors import DocumentError, LatticaError
from lattica.identity.keys import PeerId
from lattica.store.chains.proofs import Proofs, Proven
from lattica.store.crdt.kinds import MAP
from lattica.store.crdt.values import decode_value, encode_value
from lattica.store.documents.glances import MAX_GLANCE, Seen, decoded, place_of_root
from lattica.store.documents.showing import Shown

_FEW = 32  # envelopes checked between two turns of the event loop

Ask = Callable[[PeerId], Awaitable[Shown | None]]
Key = tuple[str, str]  # a root, and a key of it
Candidates = dict[Key, list[Proven]]


async def ask_for_proofs(
    roots: Sequence[str], peers: Iterable[PeerId], ask: Ask, *, proofs: Proofs, count: int
) -> Seen | None:
    """Ask one peer after the other until `count` of them have answered; None if fewer do.

    Of each key the newest value counts that proves itself, whoever shows it.

    Raises:
        DocumentError: a root is no map.
    """
    for root in roots:
        if place_of_root(root).kind != MAP:
            raise DocumentError(f"only maps can be proven in part; glance at {root!r} unproven")
    candidates: Candidates = {}
    told: dict[PeerId, dict[Key, bytes]] = {}
    for peer in peers:
        try:
            shown = await ask(peer)
        except LatticaError:
            continue  # the next one may know
        entries = None if shown is None else _entries(roots, shown)
        if shown is None or entries is None:
            continue
        told[peer] = entries
        await _check(shown, entries, proofs, candidates)
        if len(told) == count:
            return _seen(roots, told, proofs, candidates)
    return None


def _entries(roots: Sequence[str], shown: Shown) -> dict[Key, bytes] | None:
    """What a peer says that keys hold, if its answer makes sense."""
    content = decoded(roots, shown.values)
    size = sum(len(envelope.payload) for envelope in shown.envelopes)
    if content is None or size > MAX_GLANCE:
        return None
    if not all(isinstance(entries, dict) for entries in content.values()):
        return None
    return {
        (root, key): encode_value(value)
        for root, entries in content.items()
        for key, value in entries.items()
    }


async def _check(
    shown: Shown, entries: dict[Key, bytes], proofs: Proofs, candidates: Candidates
) -> None:
    """Add what of a peer's answer is proven."""
    proofs.learn(shown.notices)
    for start in range(0, len(shown.envelopes), _FEW):
        await anyio.lowlevel.checkpoint()
        written = proofs.read(shown.envelopes[start : start + _FEW], shown.memberships)
        for place, found in written.items():
            key = (place.root, place.key or "")
            candidates.setdefault(key, []).extend(
                each for each in found if each.value == entries.get(key)
            )


def _seen(
    roots: Sequence[str],
    told: dict[PeerId, dict[Key, bytes]],
    proofs: Proofs,
    candidates: Candidates,
) -> Seen:
    content: dict[str, Any] = {root: {} for root in roots}
    seen = Seen(
        content,
        tuple(told),
        {root: {} for root in roots},
        {root: set() for root in roots},
        {root: set() for root in roots},
    )
    for root, key in sorted({key for entries in told.values() for key in entries}):
        # Notices that came with later answers count for earlier ones too.
        found = [each for each in candidates.get((root, key), ()) if proofs.counts(each.proof)]
        if len({entries.get((root, key)) for entries in told.values()}) > 1:
            seen.differing[root].add(key)
        if not found:
            seen.unproven[root].add(key)
            continue
        newest = max(found, key=lambda each: each.proof[:2])
        content[root][key] = decode_value(newest.value)
        seen.proofs[root][key] = newest.proof
    return seen
