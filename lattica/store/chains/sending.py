"""What a peer lacks of a document, read from the heads that it tells."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed
from lattica.store.chains.chain import Chain, Link, prove
from lattica.store.chains.messages import MAX_BATCH, Head

MAX_SHOWN = 1 << 20  # bytes of envelopes that show a peer a fork


class Batch(NamedTuple):
    """Envelopes in an order that can be applied."""

    envelopes: tuple[Signed, ...]
    heads: tuple[Head, ...]  # of the authors in it: where whoever takes it in arrives
    is_complete: bool  # whether nothing else is missing


class Wanted(NamedTuple):
    """A part of an author's chain: what comes after `start`, up to `stop`."""

    author: PeerId
    start: int
    stop: int


def wanted(
    chains: Iterable[Chain], theirs: Iterable[Head], committed: Mapping[PeerId, int] | None
) -> list[Wanted]:
    """The parts of our chains that follow where a peer is."""
    heads = {head.author: head for head in theirs}
    found = []
    for chain in chains:
        stop = chain.head if committed is None else min(chain.head, committed.get(chain.author, 0))
        if chain.upto is not None:
            stop = min(stop, chain.upto)  # the replica may not be made anew yet
        head = heads.get(chain.author)
        start = head.sequence if head is not None else 0
        if start < stop and (head is None or chain.hash_at(start) in (head.hash, None)):
            found.append(Wanted(chain.author, start, stop))
    return found


def missing(
    chains: Iterable[Chain],
    theirs: Iterable[Head],
    *,
    limit: int,
    committed: Mapping[PeerId, int] | None,
) -> Batch | None:
    """What a peer with the heads `theirs` lacks, at most about `limit` bytes of it.

    `committed` caps what may leave: the sequence numbers that are safe on disk.
    None: some of it is on disk only.
    """
    by_author = {chain.author: chain for chain in chains}
    suffixes = []
    for part in wanted(by_author.values(), theirs, committed):
        chain = by_author[part.author]
        if part.start < chain.base:
            return None
        suffixes.append(chain.links[part.start - chain.base : part.stop - chain.base])
    return cut_batch(heapq.merge(*suffixes, key=lambda link: link.position), limit)


def cut_batch(links: Iterable[Link], limit: int, *, is_all: bool = True) -> Batch:
    """The first links, at most about `limit` bytes; `is_all`: no more follow than these."""
    chosen: list[Link] = []
    size = 0
    for link in links:
        if size >= limit or len(chosen) >= MAX_BATCH:
            is_all = False
            break
        chosen.append(link)
        size += len(link.envelope.payload)
    chosen = _ending_in_proofs(chosen)
    last = {link.envelope.author: link for link in chosen}
    heads = tuple(Head(author, link.sequence, link.hash) for author, link in last.items())
    return Batch(tuple(link.envelope for link in chosen), heads, is_all)


def _ending_in_proofs(links: list[Link]) -> list[Link]:
    """Leave out links at an author's end whose signatures somebody has spoiled.

    Whoever gets them could not tell that they are authentic: what vouches for them comes later.
    """
    spoiled: set[bytes] = set()
    settled: set[PeerId] = set()
    for link in reversed(links):
        author = link.envelope.author
        if author in settled:
            continue
        if prove(link):
            settled.add(author)
        else:
            spoiled.add(link.hash)
    return [link for link in links if link.hash not in spoiled] if spoiled else links


def contradictions(chains: Mapping[PeerId, Chain], theirs: Iterable[Head]) -> tuple[Signed, ...]:
    """Our envelopes where a peer holds others: to show it that their authors forked.

    Beside the one at its head some before it, further and further apart, so that the place
    of the fork is found in a few rounds.
    """
    found: list[Signed] = []
    size = 0
    for head in theirs:
        chain = chains.get(head.author)
        if chain is None or chain.hash_at(head.sequence) in (head.hash, None):
            continue
        for sequence in samples(head.sequence):
            if (link := chain.at(sequence)) is None or size > MAX_SHOWN:
                break
            stretch = chain.stretch(link)
            found += stretch
            size += sum(len(envelope.payload) for envelope in stretch)
    return tuple(found)


def samples(sequence: int) -> list[int]:
    """`sequence` and some numbers before it, further and further apart."""
    found, step = [], 1
    while sequence > 0:
        found.append(sequence)
        sequence, step = sequence - step, step * 2
    return found
