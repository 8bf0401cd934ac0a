"""Which stages a session runs through. Pure: no I/O, no clock."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

import msgspec

from lattica.identity.keys import PeerId
from serving.errors import NoCoverError
from serving.messages import Hop, StageInfo
from serving.span import Span, missing

HOP_COST = 0.001  # seconds that every further stage costs beside its round trip


class Live(msgspec.Struct, frozen=True):
    """A volunteer that has just answered."""

    peer: PeerId
    info: StageInfo
    rtt: float  # seconds from asking to the answer


def find_route(model: str, layers: int, live: Iterable[Live], tokens: int = 0) -> tuple[Hop, ...]:
    """The cheapest ring over all layers: few stages, short round trips, room for `tokens`.

    A stage may run only a part of the span it holds. Dijkstra over layer boundaries.

    Raises:
        NoCoverError: names the layers that nobody serves.
    """
    serving = [
        (entry, entry.info.span)
        for entry in live
        if entry.info.state == "serving" and entry.info.span is not None
    ]
    gaps = missing(layers, [span for _, span in serving])
    if gaps:
        raise NoCoverError(no_cover(model, layers, gaps))
    # Every boundary is reached: stages without room cost more, but are not left out, so
    # that a busy mesh is told as busy and not as incomplete.
    best: dict[int, float] = {0: 0.0}
    how: dict[int, tuple[int, PeerId]] = {}
    queue = [(0.0, 0)]
    while queue:
        cost, at = heapq.heappop(queue)
        if at == layers:
            break
        if cost > best[at]:
            continue
        for entry, span in serving:
            if at not in span:
                continue
            busy = 1000.0 if entry.info.kv_free < tokens else 0.0
            total = cost + HOP_COST + entry.rtt + busy
            if total < best.get(span.end, float("inf")):
                best[span.end] = total
                how[span.end] = (at, entry.peer)
                heapq.heappush(queue, (total, span.end))
    hops: list[Hop] = []
    at = layers
    while at > 0:
        start, peer = how[at]
        hops.append(Hop(peer, Span(start, at)))
        at = start
    return tuple(reversed(hops))


def no_cover(model: str, layers: int, gaps: Sequence[Span]) -> str:
    """What to tell people whose model is incomplete."""
    names = ", ".join(map(str, gaps))
    return (
        f"nobody serves layers {names} of {model} (it has 0:{layers}); on another machine run: "
        f"lattica serve {model} --layers {gaps[0]}"
    )


def choose_span(layers: int, held: Iterable[Span], capacity: int) -> Span | None:
    """The span a new volunteer should take: the longest gap it can fill; None: stand by."""
    gaps = missing(layers, held)
    if not gaps:
        return None
    gap = max(gaps, key=lambda span: (len(span), -span.start))
    return Span(gap.start, min(gap.end, gap.start + max(1, capacity)))


def choose_among(layers: int, others: Iterable[Live], capacity: int, *, me: PeerId) -> Span | None:
    """The span to claim beside `others`; None: stand by.

    Among volunteers that choose at the same time the lower PeerId goes first, so a round of
    claims settles: the lowest is firm at once, the next after it has heard of the lowest.
    """
    held = [
        entry.info.span
        for entry in others
        if entry.info.span is not None and (entry.info.state != "choosing" or entry.peer < me)
    ]
    return choose_span(layers, held, capacity)


def choose_standbys(
    gaps: Iterable[Span], live: Iterable[Live]
) -> tuple[list[tuple[Live, Span]], list[Span]]:
    """Which standby should take which part of the gaps, nearest first; and what is left."""
    waiting = sorted(
        (entry for entry in live if entry.info.state == "standby"), key=lambda entry: entry.rtt
    )
    chosen: list[tuple[Live, Span]] = []
    left: list[Span] = []
    for gap in gaps:
        rest: Span | None = gap
        while rest is not None and waiting:
            entry = waiting.pop(0)
            part = Span(rest.start, min(rest.end, rest.start + max(1, entry.info.capacity)))
            chosen.append((entry, part))
            rest = Span(part.end, rest.end) if part.end < rest.end else None
        if rest is not None:
            left.append(rest)
    return chosen, left
