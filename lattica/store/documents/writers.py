"""Finding the envelope that wrote a unit of content: no index is kept of that.

An author's clocks rise with the numbers of its updates, so each is found by halving; all that
are looked for are halved together, with one visit to the disk for each step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import anyio

from lattica.identity import wire
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed
from lattica.store.chains.chain import Chain
from lattica.store.chains.messages import Update
from lattica.store.chains.replica import Replica
from lattica.store.crdt.kinds import Id
from lattica.store.crdt.quick import read_body
from lattica.store.documents.shelf import Shelf

MAX_STEPS = 128  # an update that only deletes has no clock, and costs a step more

At = tuple[PeerId, int]  # an author and the number of an update
Span = tuple[int, int]


class _Search:
    """The numbers among which the update that added `clock` is."""

    def __init__(self, chain: Chain, clock: int) -> None:
        self.chain = chain
        self._clock = clock
        self._low, self._high = 1, chain.head
        self._halve()

    @property
    def at(self) -> At:
        """What to look at next."""
        return self.chain.author, self._probe

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to look at."""
        return self._low > self._high

    def look(self, span: Span | None) -> bool:
        """Whether the update looked at is the one; `span`: the clocks that it adds."""
        if span is None and self._probe < self._high:
            self._probe += 1
            return False
        if span is not None and span[0] <= self._clock < span[1]:
            return True
        if span is None or self._clock < span[0]:
            self._high = self._middle - 1
        else:
            self._low = self._probe + 1
        self._halve()
        return False

    def _halve(self) -> None:
        self._middle = (self._low + self._high) // 2
        self._probe = self._middle  # or after it, where updates have no clock


async def find_envelopes(
    replica: Replica, shelf: Shelf, units: Collection[Id]
) -> Mapping[Id, Signed]:
    """The envelopes that added these units, of as many as are found.

    Raises:
        StoreError: they cannot be read from disk.
    """
    found: dict[Id, Signed] = {}
    searches = {
        unit: _Search(replica.chains[replica.author_of(unit[0])], unit[1]) for unit in units
    }
    spans: dict[At, Span | None] = {}
    for _ in range(MAX_STEPS):
        searches = {
            unit: search
            for unit, search in searches.items()
            if unit not in found and not search.is_over
        }
        if not searches:
            break
        envelopes = await _at(shelf, {search.at: search.chain for search in searches.values()})
        for at in envelopes.keys() - spans.keys():
            spans[at] = _span(envelopes[at])
        for unit, search in tuple(searches.items()):
            if search.at not in envelopes:
                del searches[unit]  # it was cut meanwhile
            elif search.look(spans[search.at]):
                found[unit] = envelopes[search.at]
        await anyio.lowlevel.checkpoint()
    return found


def _span(envelope: Signed) -> Span | None:
    """The clocks that an accepted update adds."""
    facts = read_body(wire.decode(envelope.payload, Update).body)
    return None if facts.client is None else (facts.start, facts.end)


async def _at(shelf: Shelf, wanted: Mapping[At, Chain]) -> dict[At, Signed]:
    """These envelopes, from memory or from the disk."""
    found = {}
    for (author, sequence), chain in wanted.items():
        if (link := chain.at(sequence)) is not None:
            found[author, sequence] = link.envelope
    return found | await shelf.at([at for at in wanted if at not in found])
