"""Glances: parts of a document as other peers have it, for who only wants to read those.

A peer that opens a document keeps all of it, and can prove who wrote what. A glance keeps
nothing, and is what the peers that were asked say; so several may have to say the same. What
of it can be proven is in `showing`, for who answers, and in `proven`, for who asks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from lattica.errors import DocumentError, LatticaError
from lattica.identity.keys import PeerId
from lattica.store.chains.proofs import Proof
from lattica.store.crdt.kinds import KINDS, MAX_NAME, Place
from lattica.store.crdt.values import decode_value, encode_value
from lattica.store.documents.document import Document, plain

MAX_ROOTS = 64
MAX_GLANCE = 4 << 20  # bytes

Root = Annotated[str, msgspec.Meta(max_length=MAX_NAME + 8)]  # map:NAME and so on
Roots = Annotated[tuple[Root, ...], msgspec.Meta(min_length=1, max_length=MAX_ROOTS)]
Glance = Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_ROOTS)]  # a value for each root

Ask = Callable[[PeerId], Awaitable[Glance | None]]


class Seen(NamedTuple):
    """What a glance has shown."""

    content: dict[str, Any]  # by root: maps as dicts, arrays as lists, texts, counters as numbers
    peers: tuple[PeerId, ...]  # who says so
    # Of a glance that proves itself, by root: who wrote what stands under a key; keys of which
    # peers told without proof, which are left out; and keys of which they told different things.
    proofs: Mapping[str, dict[str, Proof]] = {}
    unproven: Mapping[str, set[str]] = {}
    differing: Mapping[str, set[str]] = {}


def glance_at(document: Document, roots: Sequence[str]) -> Glance:
    """What this peer has of these roots.

    Raises:
        DocumentError: a root's name tells no kind, or it is too much.
    """
    found, size = [], 0
    for root in roots:
        place = place_of_root(root)
        found.append(encode_value(plain(place.kind, document.state.raw(place))))
        size += len(found[-1])
        if size > MAX_GLANCE:
            raise DocumentError(
                f"a glance shows at most {MAX_GLANCE} bytes; open {document.name!r} instead"
            )
    return tuple(found)


def place_of_root(root: str) -> Place:
    """The place that `map:NAME` and so on tells.

    Raises:
        DocumentError: it tells none.
    """
    kind, colon, name = root.partition(":")
    if not colon or kind not in KINDS or not 0 < len(root) <= MAX_NAME:
        raise DocumentError(f"{root!r:.80} is no root: say {', '.join(KINDS)}, a colon, its name")
    return Place(kind, name)


async def ask_for(
    roots: Sequence[str], peers: Iterable[PeerId], ask: Ask, *, agree: int
) -> Seen | None:
    """Ask one peer after the other until `agree` of them say the same; None if they are too few.

    Raises:
        DocumentError: they do not say the same.
    """
    said: dict[Glance, list[PeerId]] = {}
    for peer in peers:
        try:
            told = await ask(peer)
        except LatticaError:
            continue  # the next one may know
        content = decoded(roots, told)
        if told is None or content is None:
            continue
        said.setdefault(told, []).append(peer)
        if len(said[told]) >= agree:
            return Seen(content, tuple(said[told]))
    if len(said) > 1:
        raise DocumentError(
            f"{sum(map(len, said.values()))} peers gave {len(said)} different answers; "
            "ask again, or open the document to see for yourself"
        )
    return None


def decoded(roots: Sequence[str], told: Glance | None) -> dict[str, Any] | None:
    """What a peer has said, if it makes sense."""
    if told is None or len(told) != len(roots):
        return None
    try:
        return {root: decode_value(value) for root, value in zip(roots, told, strict=True)}
    except DocumentError:
        return None
