"""A relay's rules: who reaches whom, for how long, and what is dropped."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lattica.errors import NoReservationError, RelayBusyError, RelayError
from lattica.reach import forwarding as f
from lattica.rpc import failures
from lattica.rpc.messages import Failure
from tests.reach.relay_bench import Bench, Link, frame, name_of, place

# ---------------------------------------------------------------- frames between two ends


def test_frames_go_unchanged_to_the_other_end_both_ways() -> None:
    bench = Bench()
    name = bench.link(0, 1)
    there, back = frame(name, 500, 0x41), frame(name, 600, 0x42)
    bench.relay.forward([(there, place(0)), (back, place(1)), (there, place(0))])
    assert bench.sent == [(place(1), [there, there]), (place(0), [back])]
    (session,) = bench.relay.statistics().sessions
    assert (session.source, session.target) == tuple(bench.peers[:2])
    assert (session.up.frames, session.up.bytes, session.up.dropped) == (2, 1000, 0)
    assert (session.down.frames, session.down.bytes, session.down.dropped) == (1, 600, 0)
    bench.assert_adds_up()


def test_a_batch_is_sent_at_once_for_each_leg() -> None:
    bench = Bench(6)
    names = [bench.link(0, 1, 1), bench.link(2, 1, 2), bench.link(3, 4, 3)]
    sources = [0, 2, 3]
    batch = [(frame(names[k % 3], 100 + k), place(sources[k % 3])) for k in range(12)]
    bench.relay.forward(batch)
    assert [(to, len(frames)) for to, frames in bench.sent] == [(place(1), 8), (place(4), 4)]
    assert bench.sent[0][1] == [each for each, source in batch if source != place(3)]


def test_frames_follow_the_links_of_both_ends() -> None:
    bench = Bench()
    name = bench.link(0, 1)
    bench.links[bench.peers[0]].places.add(place(70))
    bench.links[bench.peers[1]] = Link(place(81), place(1))
    bench.relay.forward([(frame(name), place(70))])
    assert bench.arrived() == [(place(81), frame(name))]
    bench.relay.forward([(frame(name), place(1))])  # known, though not where its packets go
    assert bench.arrived() == [(place(0), frame(name))]


def test_an_end_that_calls_the_others_place_its_own_gets_nothing_for_it() -> None:
    """The address that packets go to counts before those that a peer has named."""
    bench = Bench()
    name = bench.link(0, 1)
    bench.links[bench.peers[0]].places.add(place(1))
    bench.relay.forward([(frame(name), place(1))])
    assert bench.arrived() == [(place(0), frame(name))]


def test_third_parties_reach_nobody_and_are_not_reached() -> None:
    bench = Bench()
    name = bench.link(0, 1)
    bench.link(2, 3, 2)
    bench.relay.forward([(frame(name), place(2)), (frame(name), place(3))])
    bench.relay.forward([(frame(name), place(99))])  # of no link
    assert bench.arrived() == []
    assert bench.counters == {f.WRONG_SOURCE: 3}
    bench.assert_adds_up()


def test_a_spoofed_source_counts_for_nothing() -> None:
    """Frames with the right session from elsewhere neither pass nor keep it open."""
    bench = Bench(idle=10.0)
    name = bench.link(0, 1)
    for _ in range(12):
        bench.wait(1.0)
        bench.relay.forward([(frame(name), place(50))])
    bench.wait(1.0)
    assert bench.arrived() == []
    assert bench.relay.load.sessions == 0
    assert bench.counters[f.WRONG_SOURCE] + bench.counters[f.STRANGER] == 12


def test_frames_of_strangers_with_unknown_sessions_are_not_kept() -> None:
    bench = Bench()
    bench.relay.forward([(frame(name_of(9)), place(50))])
    assert bench.relay.statistics().waiting == 0
    assert bench.counters == {f.STRANGER: 1}


@pytest.mark.parametrize("size", range(1, 10))
def test_frames_too_short_to_hold_anything_are_dropped(size: int) -> None:
    bench = Bench()
    name = bench.link(0, 1)
    bench.relay.forward([(frame(name)[:size], place(0))])
    bench.relay.forward([(b"", place(0))])
    assert bench.arrived() == []
    assert bench.counters == {f.SHORT: 2}
    bench.assert_adds_up()


def test_no_bit_of_the_session_may_be_wrong() -> None:
    bench = Bench(orphan_frames=0)
    name = bench.link(0, 1)
    whole = frame(name)
    for bit in range(8, 72):
        spoilt = bytearray(whole)
        spoilt[bit // 8] ^= 1 << bit % 8
        bench.relay.forward([(bytes(spoilt), place(0))])
    assert bench.arrived() == []
    bench.assert_adds_up()
    assert sum(bench.counters.values()) == 64


def test_a_link_over_another_relay_carries_no_sessions() -> None:
    bench = Bench()
    name = bench.link(0, 1)
    bench.links[bench.peers[1]] = Link(place(5, "relay"))
    assert bench.give(name, 0) == 0
    assert bench.counters == {f.NO_LEG: 1}
    with pytest.raises(NoReservationError):
        bench.relay.open(name_of(2), bench.peers[0], bench.peers[1])
    with pytest.raises(RelayError, match="no link of its own"):
        bench.link(1, 0, 3)


def test_the_relay_sends_only_what_came_in() -> None:
    """Not on opening, closing, checking or losing anything."""
    bench = Bench()
    name = bench.link(0, 1)
    bench.relay.peer_down(bench.peers[0])
    bench.wait(30.0)
    bench.relay.close(name, bench.peers[0])
    bench.relay.cancel(bench.peers[1])
    bench.wait(200.0)
    assert bench.sent == []


# ------------------------------------------------------- reservations, sessions, their limits


def test_a_session_needs_the_targets_reservation_and_both_links() -> None:
    bench = Bench()
    zero, one = bench.peers[:2]
    with pytest.raises(NoReservationError, match="try its other relays"):
        bench.relay.open(name_of(1), zero, one)
    bench.relay.reserve(zero)  # the dialer's own does not count
    with pytest.raises(NoReservationError):
        bench.relay.open(name_of(1), zero, one)
    bench.relay.reserve(one)
    link = bench.links.pop(one)
    with pytest.raises(NoReservationError):
        bench.relay.open(name_of(1), zero, one)
    bench.links[one] = link
    link = bench.links.pop(zero)
    with pytest.raises(RelayError):
        bench.relay.open(name_of(1), zero, one)
    bench.links[zero] = link
    bench.relay.open(name_of(1), zero, one)
    assert bench.relay.load.sessions == 1


def test_names_that_cannot_be_used_are_refused() -> None:
    bench = Bench()
    name = bench.link(0, 1)
    for wrong in (b"", b"short", bytes(9)):
        with pytest.raises(RelayError, match="8 bytes"):
            bench.relay.open(wrong, bench.peers[0], bench.peers[1])
    for source, target in ((0, 1), (2, 1), (1, 0)):
        bench.relay.reserve(bench.peers[target])
        with pytest.raises(RelayError, match="another name"):
            bench.relay.open(name, bench.peers[source], bench.peers[target])
    with pytest.raises(RelayError, match="itself"):
        bench.relay.open(name_of(2), bench.peers[1], bench.peers[1])
    assert bench.give(name, 0) == 1


def test_a_reservation_holds_as_long_as_told_and_is_renewed() -> None:
    bench = Bench(reservation=20.0)
    assert bench.relay.reserve(bench.peers[1]) == 20.0
    bench.wait(15.0)
    bench.relay.reserve(bench.peers[1])
    bench.wait(15.0)
    bench.relay.open(name_of(1), bench.peers[0], bench.peers[1])
    assert bench.relay.load.reservations == 1
    bench.now += 5.0  # over, though nobody has looked yet
    with pytest.raises(NoReservationError):
        bench.relay.open(name_of(2), bench.peers[0], bench.peers[1])
    bench.relay.check()
    assert bench.relay.load.reservations == 0
    assert bench.give(name_of(1), 0) == 1  # what is open goes on


def test_a_cancelled_reservation_takes_no_further_sessions() -> None:
    bench = Bench()
    name = bench.link(0, 1)
    bench.relay.cancel(bench.peers[1])
    bench.relay.cancel(bench.peers[1])
    bench.relay.cancel(bench.peers[3])  # had none
    with pytest.raises(NoReservationError):
        bench.relay.open(name_of(2), bench.peers[0], bench.peers[1])
    assert bench.relay.load.reservations == 0
    assert bench.give(name, 0) == 1


def test_reservations_are_bounded_and_the_answer_tells_when_to_come_back() -> None:
    bench = Bench(5, max_reservations=3, retry_after=7.0, reservation=60.0)
    for peer in bench.peers[:3]:
        bench.relay.reserve(peer)
    with pytest.raises(RelayBusyError, match="in 7 s") as refused:
        bench.relay.reserve(bench.peers[3])
    assert refused.value.retry_after == 7.0
    bench.relay.reserve(bench.peers[0])  # a renewal is none more
    bench.relay.cancel(bench.peers[1])
    bench.relay.reserve(bench.peers[3])
    with pytest.raises(RelayBusyError):
        bench.relay.reserve(bench.peers[4])
    bench.wait(61.0)
    bench.relay.reserve(bench.peers[4])
    assert bench.relay.load.reservations == 1


def test_a_caller_is_told_when_to_come_back() -> None:
    bench = Bench(max_reservations=0, retry_after=7.0)
    with pytest.raises(RelayBusyError) as refused:
        bench.relay.reserve(bench.peers[0])
    failure = failures.to_failure(1, refused.value, with_traceback=False)
    told = failures.to_error(msgspec.convert(msgspec.to_builtins(failure), Failure), "relay")
    assert isinstance(told, RelayBusyError)
    assert (str(told), told.retry_after) == (str(refused.value), 7.0)


def test_sessions_are_bounded_in_total() -> None:
    bench = Bench(8, max_sessions=3)
    for number in range(3):
        bench.link(number, 7, number)
    with pytest.raises(RelayBusyError) as refused:
        bench.link(3, 7, 3)
    assert refused.value.retry_after == bench.config.retry_after
    bench.relay.close(name_of(0), bench.peers[0])
    bench.link(3, 7, 3)
    assert bench.relay.load.sessions == 3


@pytest.mark.parametrize("is_asker", [True, False])
def test_sessions_are_bounded_for_each_end(is_asker: bool) -> None:
    bench = Bench(8, max_sessions_per_peer=3)

    def link(number: int) -> None:
        bench.link(*((0, number) if is_asker else (number, 0)), number)

    for number in (1, 2, 3):
        link(number)
    with pytest.raises(RelayBusyError, match=bench.peers[0].short):
        link(4)
    bench.link(4, 5, 5)  # others are not concerned
    bench.relay.close(name_of(2), bench.peers[0])
    link(4)


def test_one_peer_cannot_take_all_sessions_of_another() -> None:
    bench = Bench(4, max_sessions_per_peer=64, max_sessions_per_pair=2)
    bench.link(0, 1, 1)
    bench.link(1, 0, 2)
    for source, target in ((0, 1), (1, 0)):
        with pytest.raises(RelayBusyError):
            bench.link(source, target, 3)
    bench.link(2, 1, 3)


def test_a_peers_bytes_are_bounded_whatever_sessions_they_pass_in() -> None:
    bench = Bench(allowance=100_000, allowance_period=3600.0)
    for session in range(9):  # both ways count for who asked
        name = bench.link(0, 1, session)
        assert bench.give(name, session % 2, [1000] * 10) == 10
        if session % 3:
            bench.relay.close(name, bench.peers[1])
        bench.wait(1.0)
    assert bench.relay.load.sessions == 3
    other = bench.link(1, 2, 20)
    bench.give(name_of(0), 0, [1000] * 12)
    bench.wait(1.0)
    (left,) = bench.relay.statistics().sessions
    assert left.source == bench.peers[1]
    assert bench.give(other, 1) == 1
    with pytest.raises(RelayBusyError, match="used up") as refused:
        bench.link(0, 1, 30)
    assert 3500.0 < refused.value.retry_after <= 3600.0
    bench.wait(refused.value.retry_after)
    bench.link(0, 1, 30)


def test_who_is_joined_is_told() -> None:
    bench = Bench()
    zero, one, two = bench.peers[:3]
    name = bench.link(0, 1)
    assert bench.relay.joins(zero, one)
    assert bench.relay.joins(one, zero)
    assert not bench.relay.joins(zero, zero)
    assert not bench.relay.joins(zero, two)
    assert not bench.relay.joins(two, zero)
    bench.relay.close(name, zero)
    assert not bench.relay.joins(zero, one)


def test_only_its_ends_close_a_session() -> None:
    bench = Bench()
    name = bench.link(0, 1)
    bench.relay.close(name, bench.peers[2])
    assert bench.give(name, 0) == 1
    bench.relay.close(name, bench.peers[1])
    bench.relay.close(name, bench.peers[1])
    bench.relay.close(name, bench.peers[0])
    assert bench.relay.load.sessions == 0
    assert bench.give(name, 0) == 0
    bench.link(0, 1)  # the name is free again


def test_a_session_that_nobody_uses_is_closed() -> None:
    bench = Bench(idle=10.0)
    name = bench.link(0, 1)
    for _ in range(5):
        bench.wait(9.0)
        bench.give(name, 1)
    assert bench.relay.load.sessions == 1
    bench.wait(12.0)
    assert bench.relay.load.sessions == 0


def test_sessions_survive_a_link_that_is_soon_back() -> None:
    bench = Bench(grace=5.0)
    name = bench.link(0, 1)
    link = bench.links.pop(bench.peers[1])
    bench.relay.peer_down(bench.peers[1])
    bench.wait(4.0)
    assert bench.give(name, 0) == 0
    assert bench.counters == {f.NO_LEG: 1}
    assert bench.relay.statistics().sessions[0].up.dropped == 1
    bench.links[bench.peers[1]] = link
    bench.wait(20.0)
    assert bench.give(name, 0) == 1


@pytest.mark.parametrize("is_told", [True, False])
@pytest.mark.parametrize("lost", [0, 1])
def test_sessions_and_reservation_end_with_a_link_that_stays_away(lost: int, is_told: bool) -> None:
    bench = Bench(grace=5.0)
    bench.link(0, 1)
    bench.link(2, 3, 2)
    bench.relay.reserve(bench.peers[lost])
    del bench.links[bench.peers[lost]]
    if is_told:
        bench.relay.peer_down(bench.peers[lost])
    bench.wait(7.0)
    stats = bench.relay.statistics()
    assert [each.source for each in stats.sessions] == [bench.peers[2]]
    assert bench.relay.load.reservations == (1 if lost == 1 else 2)


@pytest.mark.parametrize("is_often", [True, False])
def test_the_load_is_told(is_often: bool) -> None:
    bench = Bench(rate=100_000.0, rate_per_peer=100_000.0)
    name = bench.link(0, 1)
    for _ in range(1000):
        bench.give(name, 0, [500])
        bench.now += 0.01
        if is_often:
            bench.relay.check()
    bench.relay.check()
    load = bench.relay.load
    assert (load.sessions, load.reservations) == (1, 1)
    assert load.rate == pytest.approx(50_000, rel=0.05)
    assert load.share == pytest.approx(0.5, rel=0.05)
    bench.wait(20.0)
    assert bench.relay.load.share < 0.01


# ---------------------------------------------------------------- frames that come too early


def test_frames_that_overtake_their_session_are_kept_for_it() -> None:
    bench = Bench()
    early = [frame(name_of(1), 100 + k) for k in range(3)]
    bench.relay.forward([(each, place(0)) for each in early])
    assert bench.arrived() == []
    bench.now += 0.3
    bench.link(0, 1)
    assert bench.arrived() == [(place(1), each) for each in early]
    assert bench.relay.statistics().waiting == 0
    assert not bench.counters
    bench.assert_adds_up()


def test_only_the_ends_early_frames_are_of_the_session() -> None:
    bench = Bench()
    bench.relay.forward([(frame(name_of(1)), place(2)), (frame(name_of(2)), place(0))])
    bench.link(0, 1)
    assert bench.arrived() == []
    bench.wait(2.0)
    assert bench.counters == {f.NO_SESSION: 2}
    bench.assert_adds_up()


@pytest.mark.parametrize("is_checked", [True, False])
def test_early_frames_are_kept_for_a_moment_only(is_checked: bool) -> None:
    bench = Bench(orphan_wait=0.5)
    bench.relay.forward([(frame(name_of(1)), place(0))])
    bench.now += 0.6
    if is_checked:
        bench.relay.check()
        assert bench.relay.statistics().waiting == 0
    bench.link(0, 1)
    assert bench.arrived() == []
    bench.relay.check()
    assert bench.counters == {f.NO_SESSION: 1}
    bench.assert_adds_up()


def test_early_frames_are_bounded_for_each_peer_and_the_newest_stay() -> None:
    bench = Bench(orphan_frames=4)
    frames = [frame(name_of(1), 100 + k) for k in range(10)]
    bench.relay.forward([(frame(name_of(2)), place(2))])
    bench.relay.forward([(each, place(0)) for each in frames])
    assert bench.relay.statistics().waiting == 5
    assert bench.counters == {f.ORPHANS_FULL: 6}
    bench.link(0, 1)
    bench.link(2, 1, 2)  # whose frame was not driven out
    assert bench.arrived() == [
        *((place(1), each) for each in frames[-4:]),
        (place(1), frame(name_of(2))),
    ]
    bench.assert_adds_up()


def test_early_frames_are_bounded_in_total() -> None:
    bench = Bench(40, max_orphans=20, orphan_frames=4)
    for peer in range(40):
        bench.give(name_of(peer), peer, [100] * 3)
    assert bench.relay.statistics().waiting == 20
    bench.assert_adds_up()
    bench = Bench(40, max_orphan_bytes=10_000)
    for peer in range(40):
        bench.give(name_of(peer), peer, [1000] * 2)
    assert bench.relay.statistics().waiting == 10
    bench.give(name_of(3), 3, [20_000])  # larger than all there is room for
    assert bench.relay.statistics().waiting <= 10
    bench.assert_adds_up()


# ---------------------------------------------------------------- whatever the order

PEERS = st.integers(0, 5)
NAMES = st.integers(0, 12)
LIMITS: dict[str, float] = {
    "max_sessions": 5,
    "max_sessions_per_peer": 3,
    "max_sessions_per_pair": 2,
    "max_reservations": 3,
    "reservation": 8.0,
    "idle": 6.0,
    "rate": 20_000.0,
    "rate_per_peer": 10_000.0,
    "burst": 8_000,
    "min_burst": 2_000,
    "small_reserve": 500,
    "orphan_frames": 3,
    "max_orphans": 7,
    "max_orphan_bytes": 5_000,
    "grace": 2.0,
    "allowance": 60_000,
    "allowance_period": 30.0,
}


class AnyOrder(RuleBasedStateMachine):
    """Operations in any order: the counters add up, and nothing exceeds its limit."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(6, **LIMITS)
        self.began = self.bench.now
        self.flows = 0

    @rule(peer=PEERS)
    def reserve(self, peer: int) -> None:
        is_full = self.bench.relay.load.reservations >= 3
        try:
            self.bench.relay.reserve(self.bench.peers[peer])
        except RelayBusyError:
            assert is_full

    @rule(peer=PEERS)
    def cancel(self, peer: int) -> None:
        self.bench.relay.cancel(self.bench.peers[peer])

    @rule(name=NAMES, one=PEERS, other=PEERS)
    def open(self, name: int, one: int, other: int) -> None:
        peers = self.bench.peers
        try:
            self.bench.relay.open(name_of(name), peers[one], peers[other])
            self.flows += 2
        except RelayError:
            pass

    @rule(name=NAMES, one=PEERS, other=PEERS)
    def link(self, name: int, one: int, other: int) -> None:
        """What most often comes to a session."""
        self.come_back(one, one)
        self.come_back(other, other)
        self.reserve(other)
        self.open(name, one, other)

    @precondition(lambda self: self.bench.relay.load.sessions > 0)
    @rule(
        which=st.integers(0, 4),
        is_up=st.booleans(),
        sizes=st.lists(st.integers(9, 1500), min_size=1, max_size=9),
    )
    def talk(self, which: int, is_up: bool, sizes: list[int]) -> None:
        """Frames from where an end is now."""
        sessions = tuple(self.bench.relay._sessions.values())
        session = sessions[which % len(sessions)]
        link = self.bench.links.get(session.ends[not is_up].peer)
        if link is not None:
            self.bench.relay.forward([(frame(session.name, size), link.current) for size in sizes])

    @precondition(lambda self: self.bench.relay.load.sessions > 0)
    @rule(which=st.integers(0, 4), is_asker=st.booleans())
    def hang_up(self, which: int, is_asker: bool) -> None:
        sessions = tuple(self.bench.relay._sessions.values())
        session = sessions[which % len(sessions)]
        self.bench.relay.close(session.name, session.ends[is_asker].peer)

    @rule(name=NAMES, by=PEERS)
    def close(self, name: int, by: int) -> None:
        self.bench.relay.close(name_of(name), self.bench.peers[by])

    @rule(
        frames=st.lists(st.tuples(NAMES, st.integers(0, 8), st.integers(0, 1500)), max_size=20),
    )
    def forward(self, frames: list[tuple[int, int, int]]) -> None:
        self.bench.relay.forward(
            [(frame(name_of(name))[:9].ljust(size, b"x"), place(at)) for name, at, size in frames]
        )

    @rule(peer=PEERS)
    def lose(self, peer: int) -> None:
        if self.bench.links.pop(self.bench.peers[peer], None) is not None:
            self.bench.relay.peer_down(self.bench.peers[peer])

    @rule(peer=PEERS, at=st.integers(0, 8))
    def come_back(self, peer: int, at: int) -> None:
        self.bench.links[self.bench.peers[peer]] = Link(place(at))

    @rule(seconds=st.floats(0.001, 4.0))
    def wait(self, seconds: float) -> None:
        self.bench.wait(seconds)

    @precondition(lambda self: self.bench.relay.load.sessions > 0)
    @rule()
    def everybody_leaves(self) -> None:
        self.bench.wait(10.0)
        assert self.bench.relay.load.sessions == 0

    @invariant()
    def adds_up(self) -> None:
        self.bench.assert_adds_up()
        stats = self.bench.relay.statistics()
        assert stats.frames_out == sum(len(frames) for _, frames in self.bench.sent)
        made = LIMITS["rate"] * (self.bench.now - self.began) + LIMITS["burst"]
        lent = self.flows * (LIMITS["min_burst"] + LIMITS["small_reserve"])
        assert stats.bytes_out <= made + lent

    @invariant()
    def keeps_to_its_limits(self) -> None:
        relay, stats = self.bench.relay, self.bench.relay.statistics()
        assert relay.load.sessions == len(stats.sessions) <= 5
        assert relay.load.reservations <= 3
        assert stats.waiting <= 7
        for peer in self.bench.peers:
            ends = [each for each in stats.sessions if peer in (each.source, each.target)]
            assert len(ends) <= 3
        assert len(relay._register) <= 6  # of those with a session or reservation only
        assert relay._shares.awake <= 2 * len(stats.sessions)
        if not relay.load.reservations and not stats.sessions:
            assert not len(relay._register)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
