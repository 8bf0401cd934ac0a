"""Rings over what the volunteers hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.identity.keys import Identity, PeerId
from serving.errors import NoCoverError, SpanError
from serving.messages import StageInfo, State
from serving.routing import Live, choose_among, choose_span, choose_standbys, find_route
from serving.span import Span, missing

LAYERS = 8


def peer(number: int) -> PeerId:
    """A made-up peer."""
    return PeerId(bytes([number]) * 32)


def live(
    number: int,
    span: Span | None,
    *,
    rtt: float = 0.01,
    kv_free: int = 1000,
    state: State | None = None,
    capacity: int = LAYERS,
) -> Live:
    """A volunteer with `span`, or on standby."""
    info = StageInfo(
        model="m",
        manifest="x",
        layers=LAYERS,
        state=state or ("serving" if span else "standby"),
        span=span,
        capacity=capacity,
        kv_free=kv_free,
    )
    return Live(peer(number), info, rtt)


def spans(route: tuple[object, ...]) -> list[str]:
    """The route as people read it."""
    return [str(hop.span) for hop in route]  # type: ignore[attr-defined]


def test_one_stage_is_better_than_two() -> None:
    entries = [live(1, Span(0, 4)), live(2, Span(4, 8)), live(3, Span(0, 8))]
    assert [hop.peer for hop in find_route("m", LAYERS, entries)] == [peer(3)]


def test_two_near_stages_are_better_than_a_far_one() -> None:
    entries = [live(1, Span(0, 4)), live(2, Span(4, 8)), live(3, Span(0, 8), rtt=0.5)]
    assert [hop.peer for hop in find_route("m", LAYERS, entries)] == [peer(1), peer(2)]


def test_overlapping_spans_are_used_in_part() -> None:
    entries = [live(1, Span(0, 5)), live(2, Span(3, 8))]
    assert spans(find_route("m", LAYERS, entries)) == ["0:5", "5:8"]


def test_a_stage_without_room_is_the_last_choice() -> None:
    entries = [live(1, Span(0, 8), kv_free=5), live(2, Span(0, 8), rtt=0.9)]
    assert find_route("m", LAYERS, entries, tokens=10)[0].peer == peer(2)
    assert find_route("m", LAYERS, entries[:1], tokens=10)[0].peer == peer(1)


def test_missing_layers_are_named_with_the_cure() -> None:
    entries = [live(1, Span(0, 2)), live(2, Span(5, 7)), live(3, None)]
    with pytest.raises(NoCoverError, match=r"layers 2:5, 7:8 of m .*serve m --layers 2:5"):
        find_route("m", LAYERS, entries)
    with pytest.raises(NoCoverError, match="layers 0:8"):
        find_route("m", LAYERS, [live(1, Span(0, 8), state="loading")])


@given(
    st.lists(
        st.tuples(st.integers(0, 7), st.integers(1, 8), st.integers(1, 50)).map(
            lambda t: (Span(t[0], min(8, t[0] + t[1])), t[2] / 100)
        ),
        max_size=12,
    )
)
def test_a_route_covers_every_layer_once_or_names_a_gap(
    held: list[tuple[Span, float]],
) -> None:
    entries = [live(number, span, rtt=rtt) for number, (span, rtt) in enumerate(held)]
    gaps = missing(LAYERS, [span for span, _ in held])
    covered = {layer for span, _ in held for layer in range(span.start, span.end)}
    assert {layer for gap in gaps for layer in range(gap.start, gap.end)} == (
        set(range(LAYERS)) - covered
    )
    try:
        route = find_route("m", LAYERS, entries)
    except NoCoverError:
        assert gaps
        return
    assert not gaps
    at = 0
    for hop in route:
        assert hop.span.start == at
        assert held[hop.peer.raw[0]][0].covers(hop.span)
        at = hop.span.end
    assert at == LAYERS


def test_a_new_volunteer_fills_the_longest_gap() -> None:
    assert choose_span(8, [], 8) == Span(0, 8)
    assert choose_span(8, [], 3) == Span(0, 3)
    assert choose_span(8, [Span(0, 2), Span(3, 4)], 8) == Span(4, 8)
    assert choose_span(8, [Span(0, 8)], 8) is None


def test_standbys_share_a_gap_that_is_too_long_for_one() -> None:
    entries = [live(1, None, capacity=2, rtt=0.2), live(2, None, capacity=3, rtt=0.1)]
    chosen, left = choose_standbys([Span(2, 7)], entries)
    assert [(entry.peer, str(span)) for entry, span in chosen] == [
        (peer(2), "2:5"),
        (peer(1), "5:7"),
    ]
    assert left == []
    assert choose_standbys([Span(2, 7), Span(7, 8)], entries[:1])[1] == [Span(4, 7), Span(7, 8)]


def test_spans_are_read_from_text() -> None:
    assert Span.parse(" 0:4 ") == Span(0, 4)
    for text in ("4", "a:b", "-1:3", "1:2:3", ""):
        with pytest.raises(SpanError, match="write it as A:B"):
            Span.parse(text)
    with pytest.raises(SpanError, match="0:8"):
        Span(4, 4).check(8)


def test_of_claims_made_at_once_the_lower_peer_goes_first() -> None:
    low, mine, high = sorted(Identity.generate().peer_id for _ in range(3))

    def claim(peer: PeerId, state: State, span: Span) -> Live:
        info = StageInfo(model="m", manifest="x", layers=6, state=state, span=span)
        return Live(peer, info, 0.001)

    same = Span(0, 3)
    assert choose_among(6, [claim(high, "choosing", same)], 3, me=mine) == same
    assert choose_among(6, [claim(low, "choosing", same)], 3, me=mine) == Span(3, 6)
    assert choose_among(6, [claim(high, "fetching", same)], 3, me=mine) == Span(3, 6)
    both = [claim(low, "choosing", same), claim(high, "serving", Span(3, 6))]
    assert choose_among(6, both, 3, me=mine) is None
