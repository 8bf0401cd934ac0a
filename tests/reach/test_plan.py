"""Plans for a punch, and what becomes of them between all kinds of NATs, packet by packet."""

from __future__ import annotations

from itertools import islice, product

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattica.config import PunchConfig
from lattica.reach.allocation import BLOCK, HIGHEST, LOWEST, PORTS
from lattica.reach.nat import Filtering, Mapping, NatReport, Ports
from lattica.reach.plan import (
    Method,
    Punch,
    Side,
    describe,
    expectation,
    guess_hosts,
    guesses,
    plan,
    steps,
)
from lattica.reach.spray import MAX_AT_ONCE, Openings, Spray
from tests.netlab import kinds
from tests.netlab.kinds import KINDS
from tests.reach.oracle import PAIRS, is_direct, method
from tests.reach.population import SHARES
from tests.reach.simulation import World

CONFIG = PunchConfig()
GUESSED = [pair for pair in PAIRS if method(*pair) in (Method.PREDICTION, Method.BIRTHDAY)]
BIRTHDAY = [pair for pair in PAIRS if method(*pair) is Method.BIRTHDAY]
FIXED = NatReport(Mapping.INDEPENDENT, Ports.PRESERVED, public=("198.18.1.1:4242",), latest=4242)
STRICT = msgspec.structs.replace(FIXED, filtering=Filtering.RESTRICTED)
DEPENDENT = NatReport(
    Mapping.DEPENDENT, Ports.RANDOM, public=("198.18.2.1:9000", "198.18.2.1:5000"), latest=9000
)
SEQUENTIAL = msgspec.structs.replace(DEPENDENT, ports=Ports.SEQUENTIAL)
IN_BLOCK = msgspec.structs.replace(DEPENDENT, ports=Ports.BLOCK, low=9000, high=9100)


def dependents(filtering: Filtering, number: int = 2) -> NatReport:
    public = (f"198.18.{number}.1:9000",)
    return msgspec.structs.replace(DEPENDENT, filtering=filtering, public=public)


def both_ways(one: str, other: str, seed: int, **conditions: float) -> World:
    """A world in which the lower seeds' parity says who dials."""
    dialer, acceptor = (one, other) if seed % 2 else (other, one)
    return World(dialer, acceptor, seed, **conditions)  # type: ignore[arg-type]


# ------------------------------------------------------------------ all kinds


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_pair_becomes_direct_exactly_if_the_oracle_says_so(one: str, other: str) -> None:
    for seed in (1, 2):
        world = both_ways(one, other, seed)
        at = world.run()
        assert (at is not None) is is_direct(one, other)
        if world.punch.method is not method(one, other):
            # Plain packets are enough; guessing is planned, for later.
            assert method(one, other) is Method.PLAIN
            assert world.punch.delay == CONFIG.guess_after_open
        if method(one, other) is Method.PLAIN:
            assert at is not None
            assert at < 0.2


def test_the_oracle_knows_all_pairs() -> None:
    assert len(PAIRS) == 105
    assert sum(is_direct(*pair) for pair in PAIRS) == 72
    assert len(BIRTHDAY) == 16
    assert len(GUESSED) == 25
    for one, other in product(KINDS, KINDS):
        assert method(one, other) is method(other, one)


def test_guessing_makes_a_sixth_of_peoples_pairs_direct_that_plain_punching_does_not() -> None:
    """The figures of `docs/network.md`, for a large population."""
    direct, plain = (
        sum(
            SHARES[one] * SHARES[other]
            for one, other in product(SHARES, SHARES)
            if is_in(one, other)
        )
        / 100**2
        for is_in in (is_direct, lambda *pair: method(*pair) is Method.PLAIN)
    )
    assert direct == pytest.approx(0.905, abs=0.001)
    assert plain == pytest.approx(0.736, abs=0.001)


@pytest.mark.parametrize(("one", "other"), [pair for pair in GUESSED if pair not in BIRTHDAY])
def test_a_foreseen_port_is_found_within_five_seconds(one: str, other: str) -> None:
    for seed in range(20):
        at = both_ways(one, other, seed).run()
        assert at is not None
        assert at < 5.0


@pytest.mark.parametrize(
    "pair",
    [
        (kinds.PORT_RESTRICTED, kinds.SYMMETRIC_RANDOM),
        (kinds.FIREWALL, kinds.ADDRESS_DEPENDENT),
        (kinds.CARRIER_HOME, kinds.CARRIER_SYMMETRIC_HOME),
        (kinds.PORT_RESTRICTED_RANDOM, kinds.SYMMETRIC_OPEN),
    ],
)
def test_birthday_pairs_succeed_within_thirty_seconds_and_within_the_limits(
    pair: tuple[str, str],
) -> None:
    tries, found = 200, 0
    for seed in range(tries):
        world = both_ways(*pair, seed, loss=0.02)
        found += world.run(CONFIG.patience) is not None
        for end in world.ends:
            assert end.packets <= CONFIG.max_packets
    assert found >= 0.95 * tries


def test_filters_that_nobody_has_looked_at_change_the_time_only() -> None:
    for one, other in GUESSED:
        assert World(one, other, 3, filters=False).run() is not None


def test_an_attempt_in_vain_stays_within_the_limits() -> None:
    """The other's host is not even there."""
    world = World(kinds.PORT_RESTRICTED, kinds.SYMMETRIC_RANDOM, 1, loss=1.0)
    assert world.run(60.0) is None
    guesser, opener = world.ends
    assert 2000 < guesser.packets <= CONFIG.max_packets
    assert 256 < opener.packets <= 256 * (1 + CONFIG.patience / CONFIG.repeat_every) + 20


def test_two_that_let_strangers_in_need_ways_that_go_and_come_by_different_ports() -> None:
    """Each is reached at the port that a witness saw, and is seen at another one."""
    strict = [each for each in PAIRS if World(*each, 1, is_lenient=False).run(8.0) is not None]
    assert set(PAIRS) - set(strict) - {each for each in PAIRS if not is_direct(*each)} == {
        (kinds.SYMMETRIC_OPEN, kinds.SYMMETRIC_OPEN)
    }


@pytest.mark.parametrize("noise", [0, 5, 60])
def test_two_sequences_meet_though_other_connections_took_ports(noise: int) -> None:
    for seed in range(10):
        pair = (kinds.SYMMETRIC_SEQUENTIAL, kinds.SYMMETRIC_SEQUENTIAL)
        assert World(*pair, seed, noise=noise).run(5.0) is not None


# ------------------------------------------------------------------ plans


def test_nothing_is_guessed_or_opened_towards_a_place_that_nobody_has_seen() -> None:
    for unseen in (NatReport(), NatReport(Mapping.DEPENDENT, Ports.RANDOM)):
        for moving in (DEPENDENT, SEQUENTIAL, IN_BLOCK):
            assert plan(moving, unseen) == plan(unseen, moving) == Punch(Method.PLAIN)
            assert expectation(moving, unseen).probability is None


@pytest.mark.parametrize("other", [NatReport(), FIXED, NatReport(Mapping.NONE)])
def test_addresses_that_do_not_move_need_nothing_more(other: NatReport) -> None:
    assert plan(FIXED, other) == plan(other, FIXED) == Punch(Method.PLAIN)


@pytest.mark.parametrize(
    ("moving", "sockets", "word"),
    [(DEPENDENT, 256, "birthday"), (SEQUENTIAL, 8, "port prediction"), (IN_BLOCK, 16, "port")],
)
def test_the_side_that_moves_opens_and_the_other_guesses(
    moving: NatReport, sockets: int, word: str
) -> None:
    punch = plan(moving, STRICT)
    assert (punch.sockets_dialer, punch.guess_dialer) == (sockets, False)
    assert (punch.sockets_acceptor, punch.guess_acceptor) == (0, True)
    assert describe(punch).startswith(word)
    mirrored = plan(STRICT, moving)
    assert (mirrored.dialer, mirrored.acceptor) == (punch.acceptor, punch.dialer)
    assert mirrored.delay == punch.delay == CONFIG.guess_after


@pytest.mark.parametrize("filtering", [Filtering.OPEN, Filtering.ADDRESS])
def test_guessing_waits_where_plain_packets_should_get_in(filtering: Filtering) -> None:
    lets_in = msgspec.structs.replace(FIXED, filtering=filtering)
    assert plan(DEPENDENT, lets_in).delay == CONFIG.guess_after_open
    assert expectation(DEPENDENT, lets_in).probability == 1.0


def test_two_that_move_are_not_worth_an_attempt_unless_both_let_strangers_in() -> None:
    strict = dependents(Filtering.RESTRICTED, 3)
    assert plan(DEPENDENT, strict) == Punch(Method.HOPELESS)
    chance = expectation(DEPENDENT, strict).probability
    assert chance is not None
    assert 0 < chance < 0.005
    lets_in = dependents(Filtering.OPEN), dependents(Filtering.OPEN, 3)
    assert plan(*lets_in) == Punch(Method.PLAIN)
    assert plan(lets_in[0], strict) == Punch(Method.HOPELESS)


def test_nothing_is_guessed_at_ones_own_public_address_unless_it_turns_packets_round() -> None:
    behind_same = msgspec.structs.replace(DEPENDENT, public=FIXED.public)
    assert plan(behind_same, FIXED) == Punch(Method.PLAIN)
    turns = msgspec.structs.replace(FIXED, hairpin=True)
    assert plan(behind_same, turns).method is plan(turns, behind_same).method is Method.BIRTHDAY


def test_without_udp_there_is_no_plan() -> None:
    blocked = NatReport(udp=False)
    for pair in ((blocked, FIXED), (FIXED, blocked), (blocked, DEPENDENT)):
        assert plan(*pair) == Punch(Method.NONE)
        assert expectation(*pair).probability == 0.0


def test_a_host_that_only_its_report_names_is_not_sprayed() -> None:
    """A peer could name a third party's, which would get thousands of packets."""
    report = msgspec.structs.replace(DEPENDENT, public=("198.18.2.1:9000", "198.18.99.1:80"))
    assert guess_hosts(report, ["198.18.2.1"]) == ("198.18.2.1",)
    assert guess_hosts(report, []) == ()


reports = st.builds(
    lambda mapping, ports, filtering, hairpin, udp, public, latest, block: NatReport(
        mapping, ports, filtering, hairpin, 0, udp, tuple(public), latest, *sorted(block)
    ),
    st.sampled_from(Mapping),
    st.sampled_from(Ports),
    st.sampled_from(Filtering),
    st.sampled_from([None, True, False]),
    st.sampled_from([None, True, False]),
    st.lists(st.sampled_from([*FIXED.public, *DEPENDENT.public]), max_size=4),
    st.integers(0, 65_535),
    st.tuples(st.integers(1, 65_535), st.integers(1, 65_535)),
)


@given(reports, reports)
def test_every_plan_keeps_the_limits_and_can_be_sent(one: NatReport, other: NatReport) -> None:
    punch = plan(one, other)
    raw = msgspec.msgpack.encode(punch)
    assert msgspec.msgpack.decode(raw, type=Punch) == punch  # checks the bounds
    assert 0 <= (expectation(one, other).probability or 0) <= 1
    for side in (punch.dialer, punch.acceptor):
        assert not (side.sockets and side.guesses)
        assert side.likely <= side.guesses
    assert describe(punch) == describe(plan(other, one))


@pytest.mark.parametrize(
    "side", [Side(sockets=257), Side(guesses=3001), Side(stride=3), Side(sockets=-1)]
)
def test_a_plan_beyond_the_limits_is_refused(side: Side) -> None:
    raw = msgspec.msgpack.encode(Punch(Method.BIRTHDAY, side))
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(raw, type=Punch)


# ------------------------------------------------------------------ guesses


@pytest.mark.parametrize("report", [DEPENDENT, SEQUENTIAL, IN_BLOCK, FIXED, NatReport()])
def test_every_port_comes_once_and_is_one_that_a_nat_gives(report: NatReport) -> None:
    ports = list(guesses(report, 7))
    assert len(ports) == PORTS
    assert set(ports) == set(range(LOWEST, HIGHEST + 1))


@settings(max_examples=40)
@given(reports, st.integers())
def test_no_port_comes_twice_whatever_the_report_says(report: NatReport, seed: int) -> None:
    ports = list(islice(guesses(report, seed), 3000))
    assert len(set(ports)) == 3000
    assert min(ports) >= LOWEST
    assert max(ports) <= HIGHEST


def test_the_next_ports_of_a_sequence_come_first() -> None:
    assert list(islice(guesses(SEQUENTIAL, 1), 200)) == list(range(9001, 9201))
    wrapped = msgspec.structs.replace(SEQUENTIAL, latest=65_534)
    assert list(islice(guesses(wrapped, 1), 3)) == [65_535, 1024, 1025]


def test_the_ports_that_can_share_a_block_come_first_the_nearest_at_once() -> None:
    likely = list(islice(guesses(IN_BLOCK, 1), 1023 - 100))
    assert likely[:101] == list(range(9000, 9101))
    assert likely[101:105] == [8999, 9101, 8998, 9102]
    assert set(likely) == set(range(9100 - BLOCK + 1, 9000 + BLOCK))


def test_the_order_of_random_guesses_is_the_seeds() -> None:
    first, again, other = (list(islice(guesses(DEPENDENT, seed), 500)) for seed in (1, 1, 2))
    assert first == again != other
    halves = sum(port < (LOWEST + HIGHEST) / 2 for port in first)
    assert 200 < halves < 300


def test_steps_go_round_the_end_of_the_range() -> None:
    near_end = msgspec.structs.replace(SEQUENTIAL, latest=65_533)
    assert list(islice(steps(near_end, 1), 4)) == [65_534, 65_535, 1024, 1025]
    assert list(islice(steps(near_end, 2), 3)) == [65_534, 1024, 1026]


# ------------------------------------------------------------------ their times


def spray_times(side: Side, report: NatReport) -> list[float]:
    spray = Spray(side, report, 5.0, seed=1)
    times = []
    while spray.due != float("inf"):
        now = spray.due
        times += [now] * len(spray.take(now))
    return times


def test_guesses_leave_at_their_rate_until_they_are_used_up() -> None:
    punch = plan(DEPENDENT, STRICT)
    times = spray_times(punch.acceptor, DEPENDENT)
    assert len(times) == punch.acceptor.guesses
    assert times[0] == 5.0
    assert times[-1] - times[0] < CONFIG.patience
    for since, until in zip(times, times[100:], strict=False):
        assert until - since >= 0.99


def test_likely_guesses_leave_faster() -> None:
    times = spray_times(plan(IN_BLOCK, STRICT).acceptor, IN_BLOCK)
    assert sum(at < 6.0 for at in times) == pytest.approx(CONFIG.likely_rate, abs=2)
    assert sum(20.0 <= at < 21.0 for at in times) == pytest.approx(CONFIG.guess_rate, abs=2)


def test_after_a_late_look_at_the_clock_no_burst_leaves() -> None:
    spray = Spray(Side(guesses=3000), DEPENDENT, 0.0, seed=1)
    assert len(spray.take(20.0)) == MAX_AT_ONCE
    assert spray.due >= 20.0
    assert len(spray.take(20.1)) <= 11


def test_a_side_that_does_not_guess_or_open_is_never_due() -> None:
    punch = Punch(Method.PLAIN)
    assert Spray(punch.dialer, FIXED, 0.0, seed=1).due == float("inf")
    assert Openings(punch, punch.dialer, 0.0).due == float("inf")


def test_sockets_are_opened_at_their_rate_and_send_again() -> None:
    punch = plan(DEPENDENT, STRICT)
    openings = Openings(punch, punch.dialer, 10.0)
    assert openings.due == 10.0 + punch.delay
    sent: list[tuple[float, int]] = []
    while openings.due != float("inf"):
        now = openings.due
        sent += [(now, number) for number in openings.take(now)]
    first = next(at for at, number in sent if number == 255)
    assert first - 10.0 - punch.delay == pytest.approx(255 / CONFIG.open_rate)
    assert {number for _, number in sent} == set(range(256))
    assert max(at for at, _ in sent) <= 10.0 + CONFIG.patience
    assert len(sent) == pytest.approx(256 * 4, abs=260)
