"""Whose records give way where there is no more room: of those who take up most of it.

Keys cost nothing and a ticket gives a grant to as many as its bearer makes, so limits per author
bound nobody. What the mesh's authority itself has signed does: one grant for each ticket.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from lattica.identity.keys import PeerId

Root = PeerId | None  # see `grants.root_of`; None: this peer itself, whose records stay
Place = tuple[bytes, tuple[str, PeerId]]  # a key, and what may stand once under it


def largest(sizes: Mapping[Root, int], root: Root) -> PeerId | None:
    """The root that has most, if it has so much more than `root` that giving one up is fair."""
    size, crowd = max(
        ((size, each) for each, size in sizes.items() if each is not None),
        default=(0, None),
        key=lambda pair: (pair[0], pair[1].raw),
    )
    return crowd if size > sizes.get(root, 0) + 1 else None


class Crowds:
    """All records of a peer by their roots, in the order in which they came."""

    def __init__(self) -> None:
        self._places: dict[Root, dict[Place, None]] = {}
        self._sizes: Counter[Root] = Counter()

    def add(self, root: Root, place: Place) -> None:
        """A record is kept."""
        self._places.setdefault(root, {})[place] = None
        self._sizes[root] += 1

    def remove(self, root: Root, place: Place) -> None:
        """It is no more."""
        del self._places[root][place]
        self._sizes[root] -= 1
        if not self._sizes[root]:
            del self._sizes[root], self._places[root]

    def newest_of_largest(self, root: Root) -> Place | None:
        """What should give way to a record of `root`; None if nothing should."""
        crowd = largest(self._sizes, root)
        return None if crowd is None else next(reversed(self._places[crowd]))
