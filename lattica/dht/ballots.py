"""What the replicas of a key have answered to one claimant, and who ranks first. No I/O."""

from __future__ import annotations

from typing import NamedTuple

from lattica.identity.keys import PeerId

OLDEST = 1e9  # seconds
LIKE = 1.0  # seconds: ages that differ by less are one, for they were told at different times


def tolerated(replicas: int) -> int:
    """How many of so many may grant one key to two claimants, without two winning it."""
    return max(0, (replicas - 1) // 3)


def quorum(replicas: int) -> int:
    """How many leases make a winner: of any two such sets, one replica in common is honest.

    More than half where three or fewer are asked, two thirds of many. (With f liars among n,
    two quorums of q share 2q - n, which must be above f: Malkhi and Reiter, Byzantine quorum
    systems, 1998.)
    """
    return (replicas + tolerated(replicas)) // 2 + 1


class Standing(NamedTuple):
    """One claimant, as the replicas tell."""

    claimant: PeerId
    votes: int
    held_for: float  # seconds, as more replicas say than may lie

    def outranks(self, other: Standing) -> bool:
        """Whether the other gives way: it has fewer leases, or for less long.

        Both see the same, so one of them goes on. An age is what replicas tell and nobody's
        own word, so backdating it is of no use.
        """
        if self.votes != other.votes:
            return self.votes > other.votes
        if abs(self.held_for - other.held_for) > LIKE:
            return self.held_for > other.held_for
        return self.claimant.raw < other.claimant.raw


class Ballot:
    """Counts the leases of a key among `asked` replicas, whether they answer or not."""

    def __init__(self, asked: int) -> None:
        self.asked = asked
        self._ages: dict[PeerId, list[float]] = {}

    def count(self, holder: PeerId, held_for: float) -> None:
        """A replica has told who holds the key, and for how long."""
        age = min(max(0.0, held_for), OLDEST) if held_for == held_for else 0.0
        self._ages.setdefault(holder, []).append(age)

    @property
    def told(self) -> int:
        """Replicas that have granted the key to somebody."""
        return sum(map(len, self._ages.values()))

    def standing(self, claimant: PeerId) -> Standing:
        """Where a claimant is."""
        ages = sorted(self._ages.get(claimant, ()), reverse=True)
        if not ages:
            return Standing(claimant, 0, 0.0)
        return Standing(claimant, len(ages), ages[min(tolerated(self.asked), len(ages) - 1)])

    def is_won(self, claimant: PeerId) -> bool:
        """Whether a claimant holds enough leases."""
        return self.standing(claimant).votes >= quorum(self.asked)

    def first(self, *, but: PeerId | None = None) -> Standing | None:
        """The claimant that outranks all others, leaving out one."""
        first: Standing | None = None
        for claimant in self._ages:
            standing = self.standing(claimant)
            if claimant != but and (first is None or standing.outranks(first)):
                first = standing
        return first
