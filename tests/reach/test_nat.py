"""What a peer finds out about its NAT: every kind of the lab, and what liars can do."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.config import NatConfig
from lattica.errors import NatReportError
from lattica.reach.nat import Filtering, Mapping, NatObserver, NatReport, Ports, decode_report
from lattica.reach.report import MAX_ADDRESS, MAX_PUBLIC
from tests.netlab import kinds
from tests.netlab.kinds import KINDS
from tests.reach.simulation import MAIN, Network, learn

NONE, INDEPENDENT, DEPENDENT = Mapping.NONE, Mapping.INDEPENDENT, Mapping.DEPENDENT
FINDINGS = {
    kinds.PUBLIC: (NONE, Ports.PRESERVED, Filtering.OPEN),
    kinds.FULL_CONE: (INDEPENDENT, Ports.PRESERVED, Filtering.OPEN),
    kinds.ADDRESS_RESTRICTED: (INDEPENDENT, Ports.PRESERVED, Filtering.ADDRESS),
    kinds.PORT_RESTRICTED: (INDEPENDENT, Ports.PRESERVED, Filtering.RESTRICTED),
    kinds.PORT_RESTRICTED_RANDOM: (INDEPENDENT, Ports.RANDOM, Filtering.RESTRICTED),
    kinds.SYMMETRIC_OPEN: (DEPENDENT, Ports.RANDOM, Filtering.OPEN),
    kinds.ADDRESS_DEPENDENT: (DEPENDENT, Ports.RANDOM, Filtering.RESTRICTED),
    kinds.SYMMETRIC_RANDOM: (DEPENDENT, Ports.RANDOM, Filtering.RESTRICTED),
    kinds.SYMMETRIC_SEQUENTIAL: (DEPENDENT, Ports.SEQUENTIAL, Filtering.RESTRICTED),
    kinds.SYMMETRIC_BLOCK: (DEPENDENT, Ports.BLOCK, Filtering.RESTRICTED),
    kinds.CARRIER_HOME: (INDEPENDENT, Ports.RANDOM, Filtering.RESTRICTED),
    kinds.CARRIER_SYMMETRIC_HOME: (DEPENDENT, Ports.RANDOM, Filtering.RESTRICTED),
    kinds.FIREWALL: (NONE, Ports.PRESERVED, Filtering.RESTRICTED),
    kinds.UDP_BLOCKED: (Mapping.UNKNOWN, Ports.UNKNOWN, Filtering.UNKNOWN),
}
LOCAL = f"0.0.0.0:{MAIN}"
ME, MOVED = "198.18.1.1:4242", "198.18.1.9:4242"
ONE, OTHER, THIRD, LIAR = (f"198.18.{number}.7:4000" for number in (50, 51, 52, 66))


def told(*words: tuple[str, str], every: float = 1.0) -> NatObserver:
    """An observer that was told where remotes see it, one after another."""
    observer = NatObserver()
    for number, (remote, seen) in enumerate(words):
        observer.observed(remote, seen, LOCAL, number * every)
    return observer


def at(port: int, host: str = "198.18.1.1") -> str:
    return f"{host}:{port}"


@pytest.mark.parametrize("witnesses", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_known_from_what_two_or_three_peers_see(kind: str, witnesses: int) -> None:
    """Chance makes a block look like a sequence, or random ports like a block, now and then."""
    tries = 100
    found = Counter[tuple[Mapping, Ports, Filtering]]()
    for seed in range(tries):
        report = learn(Network(kind, 1, seed), witnesses=witnesses).report(0.0)
        found[report.mapping, report.ports, report.filtering] += 1
        assert report.udp is (kind != kinds.UDP_BLOCKED)
    likely = 0.9 if witnesses == 2 else 0.97
    assert found[FINDINGS[kind]] >= tries * likely, found


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != kinds.UDP_BLOCKED])
def test_the_public_address_is_where_others_see_the_socket(kind: str) -> None:
    network = Network(kind, 1, "seed")
    report = learn(network).report(0.0)
    is_dependent = report.mapping is DEPENDENT
    assert len(report.public) == (3 if is_dependent else 1)
    assert report.hosts == ("198.18.1.1",)
    assert report.public[0] == at(report.latest)


def test_a_block_is_told_by_its_lowest_and_highest_port() -> None:
    report = told((ONE, at(3000)), (OTHER, at(3400)), (THIRD, at(2900))).report(3.0)
    assert (report.ports, report.low, report.high) == (Ports.BLOCK, 2900, 3400)
    assert report.latest == 2900


def test_a_sequence_goes_on_round_the_end_of_the_range() -> None:
    report = told((ONE, at(65_534)), (OTHER, at(1025)), (THIRD, at(1030))).report(3.0)
    assert (report.ports, report.latest) == (Ports.SEQUENTIAL, 1030)


def test_answers_to_questions_sent_together_may_come_in_another_order() -> None:
    words = (ONE, at(3001)), (OTHER, at(3000)), (THIRD, at(3002))
    assert told(*words, every=0.01).report(1.0).ports is Ports.SEQUENTIAL
    assert told(*words, every=10.0).report(30.0).ports is Ports.BLOCK


def test_the_newest_port_is_the_one_first_seen_last() -> None:
    observer = told((ONE, at(3000)), (OTHER, at(3001)))
    observer.observed(ONE, at(3000), LOCAL, 9.0)
    assert observer.report(9.0).latest == 3001


def test_one_observer_proves_little() -> None:
    observer = told((ONE, ME), ("198.18.50.7:9", ME))
    report = observer.report(2.0)
    assert (report.mapping, report.public) == (Mapping.UNKNOWN, (ME,))
    observer.observed(OTHER, ME, LOCAL, 2.0)
    assert observer.report(2.0).mapping is INDEPENDENT


def test_a_liar_among_three_is_outvoted_however_often_he_speaks() -> None:
    observer = told((ONE, ME), (OTHER, ME), (LIAR, at(7, "198.19.0.1")))
    for port in range(9000, 9100):
        observer.observed(f"198.18.66.7:{port}", at(port, "198.19.0.2"), LOCAL, 3.0)
    report = observer.report(3.0)
    assert (report.mapping, report.public) == (INDEPENDENT, (ME,))


def test_only_public_peers_and_places_count() -> None:
    observer = told(
        ("10.0.0.7:4000", ME),
        ("100.64.0.7:4000", ME),
        ("127.0.0.1:4000", ME),
        ("not an address", ME),
        (ONE, "100.64.3.3:4242"),
        (ONE, "127.0.0.1:4242"),
        (ONE, "224.0.0.1:4242"),
        (ONE, at(0)),
        (ONE, ""),
    )
    assert observer.report(9.0) == NatReport()
    assert observer.counters["not_public"] == 9


def test_what_is_old_is_forgotten() -> None:
    observer = told((ONE, ME), (OTHER, ME))
    assert observer.report(300.0).mapping is INDEPENDENT
    before = observer.version
    report = observer.report(302.0)
    assert (report.mapping, report.public) == (Mapping.UNKNOWN, ())
    assert observer.version > before


def test_a_word_holds_while_its_way_works_but_is_not_taken_up_again() -> None:
    observer = told((ONE, ME), (OTHER, ME), (THIRD, ME))
    for remote in (ONE, OTHER):
        observer.confirmed(remote, ME, 200.0)
    assert observer.report(450.0).mapping is INDEPENDENT
    observer.observed(ONE, MOVED, LOCAL, 450.0)
    observer.confirmed(OTHER, ME, 451.0)
    assert observer.report(451.0).public == (MOVED,)


def test_a_rebooted_nat_is_noticed_by_the_first_word_and_believed_by_the_second() -> None:
    observer = told((ONE, ME), (OTHER, ME), (THIRD, ME))
    before = observer.version
    observer.observed(OTHER, MOVED, LOCAL, 10.0)
    assert observer.report(10.0).public == (MOVED,)
    assert observer.version > before
    observer.observed(ONE, MOVED, LOCAL, 11.0)
    report = observer.report(11.0)
    assert (report.mapping, report.public) == (INDEPENDENT, (MOVED,))


def test_the_version_rises_with_news_only() -> None:
    observer = told((ONE, at(3000)), (OTHER, at(9000)))
    before = observer.version
    observer.observed(THIRD, at(20_000), LOCAL, 2.0)  # each sees another port, as was known
    observer.observed(ONE, at(3000), LOCAL, 2.0)
    observer.report(2.0)
    assert observer.version == before
    observer.observed(THIRD, at(20_000, "198.18.1.2"), LOCAL, 3.0)
    assert observer.version == before + 1


def test_another_local_port_or_network_is_a_new_beginning() -> None:
    observer = told((ONE, ME), (OTHER, ME))
    observer.observed(ONE, at(5000), "0.0.0.0:5000", 2.0)
    assert observer.report(2.0).mapping is Mapping.UNKNOWN
    observer.observed(OTHER, at(5000), "0.0.0.0:5000", 3.0)
    observer.interfaces(["10.0.0.2", "fd00::2"])
    assert observer.report(3.0).mapping is INDEPENDENT
    observer.interfaces(["10.0.0.2", "2001:db8::2"])  # IPv6 ones come and go
    assert observer.report(3.0).mapping is INDEPENDENT
    observer.interfaces(["192.168.7.2"])
    assert observer.report(3.0) == NatReport()


def test_ipv6_does_not_make_a_mapping_look_dependent() -> None:
    observer = told((ONE, ME), ("[2001:db8::7]:4000", "[2001:db8::1]:4242"), (OTHER, ME))
    assert observer.report(3.0).mapping is INDEPENDENT
    only = told(("[2001:db8::7]:4000", "[2001:db8::1]:4242"))
    only.interfaces(["2001:db8::1"])
    assert only.report(1.0).mapping is NONE


@pytest.mark.parametrize("flood", [1, 5000])
def test_somebody_sent_to_before_is_no_stranger(flood: int) -> None:
    observer = told((ONE, ME), (OTHER, ME))
    observer.contacted(ONE, 2.0)
    for number in range(flood):
        observer.contacted(f"198.19.{number // 250}.{number % 250}:9", 2.0)
    observer.unsolicited(ONE, 3.0)
    observer.unsolicited("198.18.1.1:9", 3.0)  # a neighbour behind the same NAT
    observer.unsolicited("10.0.0.7:9", 3.0)
    assert observer.report(3.0).filtering is Filtering.UNKNOWN


def test_a_host_where_many_ports_were_tried_tells_nothing() -> None:
    observer = told((ONE, ME), (OTHER, ME))
    observer.contacted("198.18.66.7:0", 2.0)
    observer.unsolicited("198.18.66.7:4000", 2.0)
    for port in range(1, 40):
        observer.contacted(f"198.18.67.7:{port}", 2.0)
    observer.unsolicited("198.18.67.7:4000", 2.0)
    assert observer.report(3.0).filtering is Filtering.UNKNOWN


def test_what_filters_do_is_told_by_whom_they_let_in() -> None:
    observer = told((ONE, ME), (OTHER, ME))
    observer.kept_out(LIAR, 2.0)
    assert observer.report(2.0).filtering is Filtering.RESTRICTED
    observer.contacted(LIAR, 3.0)
    observer.unsolicited("198.18.66.7:9", 3.0)
    assert observer.report(3.0).filtering is Filtering.ADDRESS
    observer.unsolicited(THIRD, 4.0)
    assert observer.report(4.0).filtering is Filtering.OPEN
    assert observer.report(4.0 + NatConfig().finding_ttl + 1).filtering is Filtering.UNKNOWN


def test_the_lifetime_is_what_was_outlived() -> None:
    observer = told((ONE, ME))
    assert observer.report(0.0).lifetime == 0
    observer.idled(30.0, True)
    observer.idled(120.0, False)
    assert observer.report(0.0).lifetime == 30
    observer.idled(25.0, False)  # another router, or a busier one
    assert observer.report(0.0).lifetime == 0
    observer.idled(1e9, True)
    assert decode_report(msgspec.msgpack.encode(observer.report(0.0))).lifetime > 0


def test_what_was_tried_is_in_the_report() -> None:
    observer = told((ONE, ME))
    observer.hairpinned(True)
    assert observer.report(0.0).hairpin is True
    observer.udp_blocked()
    assert observer.report(0.0).udp is False


hosts = st.integers(0, 40).map(lambda number: f"198.18.{number}.7")
remotes = st.builds(lambda host, port: f"{host}:{port}", hosts, st.integers(0, 99_999))
places = st.one_of(
    st.builds(at, st.integers(-1, 70_000)), st.text(max_size=80), st.just("[::1]:80"), remotes
)


@given(st.lists(st.tuples(remotes, places, st.floats(0, 2000)), max_size=150))
def test_whatever_others_say_memory_is_bounded_and_the_report_can_be_sent(
    words: list[tuple[str, str, float]],
) -> None:
    config = NatConfig(max_observers=8)
    observer = NatObserver(config)
    for remote, seen, now in words:
        observer.observed(remote, seen, LOCAL, now)
        assert len(observer._seen) <= config.max_observers
        report = observer.report(now)
        assert decode_report(msgspec.msgpack.encode(report)) == report


GOOD = NatReport(
    DEPENDENT, Ports.BLOCK, Filtering.OPEN, True, 30, True, (ME, "[2001:db8::1]:9"), 9, 5, 9
)
FIELDS = msgspec.msgpack.decode(msgspec.msgpack.encode(GOOD))


def test_a_report_comes_back_as_it_was() -> None:
    assert decode_report(msgspec.msgpack.encode(GOOD)) == GOOD
    assert decode_report(msgspec.msgpack.encode([*FIELDS, "from a later version"])) == GOOD


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (0, "punch"),
        (1, "symmetric"),
        (2, 7),
        (4, "yes"),
        (5, -1),
        (5, 10**9),
        (7, [ME] * (MAX_PUBLIC + 1)),
        (7, ["198.18.1.1:4242" + " " * MAX_ADDRESS]),
        (7, ["127.0.0.1:4242"]),
        (7, ["[::1]:4242"]),
        (7, ["[::ffff:127.0.0.1]:4242"]),
        (7, ["224.0.0.251:5353"]),
        (7, ["[ff02::fb]:5353"]),
        (7, ["255.255.255.255:9"]),
        (7, ["0.0.0.0:9"]),
        (7, ["169.254.169.254:80"]),
        (7, ["192.168.1.1:80"]),
        (7, ["example.org:80"]),
        (7, ["198.18.1.1:0"]),
        (7, ["198.18.1.1:+80"]),
        (7, ["198.18.1.1:080"]),
        (7, [" 198.18.1.1:80"]),
        (7, ["198.18.1.1:70000"]),
        (7, ["198.18.1.1"]),
        (7, [7]),
        (8, 65_536),
        (8, -1),
        (9, 10),
        (9, 0),
        (10, 70_000),
    ],
)
def test_a_report_that_cannot_be_is_refused(field: int, value: object) -> None:
    fields = [*FIELDS[:field], value, *FIELDS[field + 1 :]]
    with pytest.raises(NatReportError):
        decode_report(msgspec.msgpack.encode(fields))


def test_a_peer_cannot_even_make_such_a_report() -> None:
    with pytest.raises(NatReportError, match="not a public"):
        NatReport(public=("127.0.0.1:80",))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_with_a_typed_error(raw: bytes) -> None:
    try:
        decode_report(raw)
    except NatReportError:
        pass
