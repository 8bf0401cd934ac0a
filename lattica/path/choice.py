"""Which of a link's ways is the best. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from lattica.path.way import Way, WayKind, WayTimers

SHARE_BETTER = 0.7  # a round trip must be shorter by this factor, and by
SECONDS_BETTER = 0.003  # seconds, for a change between ways of one kind


def rank(way: Way) -> tuple[bool, WayKind, float]:
    """Smaller is better: named by the other end, then by kind, then by round trip."""
    return not way.is_named, way.kind, way.rtt


def better(current: Way, ways: Iterable[Way], timers: WayTimers) -> Way | None:
    """The way to take instead of `current`, if one is clearly better, or it has died."""
    alive = [way for way in ways if way.is_alive and way.rtt]
    if not alive:
        return None
    best = min(alive, key=rank)
    if best is current:
        return None
    if current.misses:
        # It is being asked, until it counts as dead.
        return best if current.misses >= timers.misses else None
    if best.is_named != current.is_named:
        return best if best.is_named else None
    if best.kind != current.kind:
        return best if best.kind < current.kind else None
    if not current.rtt or best.rtt > SHARE_BETTER * current.rtt - SECONDS_BETTER:
        return None
    return best


def is_needless(way: Way, current: Way, since: float, now: float, timers: WayTimers) -> bool:
    """Whether a relay has done its part: a better way has been in use since `since`.

    Both ends come to this at about the same time. If the way dies, a relay is asked anew.
    """
    return (
        way.kind is WayKind.RELAYED
        and current.kind is not WayKind.RELAYED
        and current.is_alive
        and now - since >= timers.retire_after
    )


def dispensable(ways: Iterable[Way], current: Way, *, is_named: bool) -> Way | None:
    """What goes where there are too many, so that a new way, `is_named` or not, can be tried.

    The oldest that was tried in vain so far, or else, for a named one, the worst direct one.
    """
    known = tuple(ways)
    for way in known:
        if not way.is_proven and (is_named or not way.is_named):
            return way
    spare = [way for way in known if way.kind is WayKind.DIRECT and way is not current]
    return max(spare, key=rank) if is_named and spare else None
