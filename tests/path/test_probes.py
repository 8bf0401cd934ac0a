"""Probes and replies: only for those with the keys, once each, never an amplifier."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.path.interface import PROBE, PROBE_REPLY, QUIC_FIXED_BIT
from lattica.path.probes import OVERHEAD, ProbeKeys, Prober, Received, tag_of

BINDING = bytes(range(32))
NOTHING = Received()


class Ends:
    """Both ends of one link."""

    def __init__(self) -> None:
        self.counters = Counter[str]()
        keys = ProbeKeys.derive(BINDING, is_dialer=True)
        self.dialer = Prober(keys, Counter())
        self.acceptor = Prober(ProbeKeys.derive(BINDING, is_dialer=False), self.counters)


@pytest.fixture
def ends() -> Ends:
    return Ends()


def test_a_probe_has_the_size_it_asks_about_and_its_reply_says_so(ends: Ends) -> None:
    probe = ends.dialer.probe(1472)
    assert len(probe) == 1472
    assert probe[0] == PROBE
    assert not probe[0] & QUIC_FIXED_BIT
    assert tag_of(probe) == ends.acceptor.tag
    reply = ends.acceptor.receive(probe).reply
    assert reply[0] == PROBE_REPLY
    assert not reply[0] & QUIC_FIXED_BIT
    assert ends.dialer.receive(reply) == Received(arrived=1472)


def test_a_reply_is_never_larger_than_the_probe(ends: Ends) -> None:
    for size in (1200, 16_384):
        assert len(ends.acceptor.receive(ends.dialer.probe(size)).reply) == OVERHEAD < 1200
    smallest = ends.dialer.probe(OVERHEAD)
    assert len(ends.acceptor.receive(smallest).reply) <= len(smallest)


def test_replayed_probes_and_replies_are_dropped(ends: Ends) -> None:
    probe = ends.dialer.probe(1200)
    reply = ends.acceptor.receive(probe).reply
    assert ends.acceptor.receive(probe) == NOTHING
    assert ends.counters == {"probe:replayed": 1}
    assert ends.dialer.receive(reply).arrived == 1200
    assert ends.dialer.receive(reply) == NOTHING


def test_probes_may_overtake_each_other_but_not_come_from_long_ago(ends: Ends) -> None:
    probes = [ends.dialer.probe(1200) for _ in range(70)]
    assert ends.acceptor.receive(probes[5]).reply
    assert ends.acceptor.receive(probes[3]).reply
    assert ends.acceptor.receive(probes[3]) == NOTHING
    assert ends.acceptor.receive(probes[69]).reply
    assert ends.acceptor.receive(probes[69 - 63]).reply
    assert ends.acceptor.receive(probes[4]) == NOTHING  # behind the window: cannot be told
    assert ends.counters == {"probe:replayed": 2}


def test_an_own_probe_sent_back_is_no_probe_of_the_other(ends: Ends) -> None:
    assert ends.dialer.receive(ends.dialer.probe(1200)) == NOTHING


def test_other_keys_do_not_open_it(ends: Ends) -> None:
    stranger = Prober(ProbeKeys.derive(bytes(32), is_dialer=True), Counter())
    assert stranger.tag != ends.acceptor.tag
    assert ends.acceptor.receive(stranger.probe(1200)) == NOTHING
    assert ends.counters == {"probe:forged": 1}


def test_a_cut_probe_says_nothing_about_its_size(ends: Ends) -> None:
    assert ends.acceptor.receive(ends.dialer.probe(1472)[:1400]) == NOTHING
    assert ends.counters == {"probe:cut": 1}


def test_a_reply_to_nothing_is_dropped(ends: Ends) -> None:
    reply = ends.acceptor.receive(ends.dialer.probe(1200)).reply
    newcomer = Prober(ProbeKeys.derive(BINDING, is_dialer=True), Counter())
    assert newcomer.receive(reply) == NOTHING


def test_unanswered_probes_are_forgotten_in_the_end(ends: Ends) -> None:
    probes = [ends.dialer.probe(1200) for _ in range(1000)]
    assert len(ends.dialer._outstanding) <= 64
    assert ends.dialer.receive(ends.acceptor.receive(probes[0]).reply) == NOTHING
    assert ends.dialer.receive(ends.acceptor.receive(probes[-1]).reply).arrived == 1200


@given(st.integers(0, OVERHEAD * 8 - 1))
def test_every_bit_of_the_header_is_authenticated(bit: int) -> None:
    ends = Ends()
    probe = bytearray(ends.dialer.probe(1200))
    probe[bit // 8] ^= 1 << bit % 8
    assert ends.acceptor.receive(bytes(probe)) == NOTHING
    assert ends.counters["probe:forged"] == 1


@given(st.binary(max_size=200))
def test_random_bytes_are_dropped_and_counted(data: bytes) -> None:
    ends = Ends()
    assert ends.acceptor.receive(data) == NOTHING
    assert ends.counters.total() == 1
