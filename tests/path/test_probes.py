"""Probes and replies: only for those with the keys, once each, never an amplifier."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.path.interface import PROBE, PROBE_REPLY, QUIC_FIXED_BIT
from lattica.path.probes import OVERHEAD, Flags, Kind, ProbeKeys, Prober, Received, tag_of

BINDING = bytes(range(32))


class Ends:
    """Both ends of one link."""

    def __init__(self) -> None:
        self.counters = Counter[str]()
        keys = ProbeKeys.derive(BINDING, is_dialer=True)
        self.dialer = Prober(keys, Counter())
        self.acceptor = Prober(ProbeKeys.derive(BINDING, is_dialer=False), self.counters)

    def answer(self, probe: bytes, source: str = "") -> bytes:
        """The acceptor's reply."""
        received = self.acceptor.receive(probe)
        assert received is not None
        return self.acceptor.reply(received, source)


@pytest.fixture
def ends() -> Ends:
    return Ends()


def test_a_probe_has_the_size_it_asks_about_and_its_reply_says_so(ends: Ends) -> None:
    sequence, probe = ends.dialer.probe(1472, Flags.ACTIVE)
    assert len(probe) == 1472
    assert probe[0] == PROBE
    assert not probe[0] & QUIC_FIXED_BIT
    assert tag_of(probe) == ends.acceptor.tag
    received = ends.acceptor.receive(probe)
    assert received == Received(Kind.PROBE, sequence, 1472, Flags.ACTIVE)
    reply = ends.acceptor.reply(received)
    assert reply[0] == PROBE_REPLY
    assert not reply[0] & QUIC_FIXED_BIT
    assert ends.dialer.receive(reply) == Received(Kind.REPLY, sequence, 1472)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("192.0.2.7:4242", "192.0.2.7:4242"),
        ("[2001:db8::7]:1", "[2001:db8::7]:1"),
        ("[::ffff:192.0.2.7]:65535", "192.0.2.7:65535"),
        ("relayed by somebody", ""),
    ],
)
def test_a_reply_tells_where_the_probe_came_from(ends: Ends, source: str, told: str) -> None:
    _, probe = ends.dialer.probe()
    reply = ends.answer(probe, source)
    assert len(reply) == len(probe) == OVERHEAD
    received = ends.dialer.receive(reply)
    assert received is not None
    assert received.observed == told


def test_nobody_else_can_read_an_address(ends: Ends) -> None:
    reply = ends.answer(ends.dialer.probe()[1], "192.0.2.7:4242")
    assert bytes((192, 0, 2, 7)) not in reply
    assert (4242).to_bytes(2, "big") not in reply[17:]


def test_a_reply_is_never_larger_than_the_probe(ends: Ends) -> None:
    for size in (OVERHEAD, 1200, 16_384):
        assert len(ends.answer(ends.dialer.probe(size)[1])) == OVERHEAD <= size


def test_replayed_probes_and_replies_are_dropped(ends: Ends) -> None:
    _, probe = ends.dialer.probe(1200)
    reply = ends.answer(probe)
    assert ends.acceptor.receive(probe) is None
    assert ends.counters == {"probe:replayed": 1}
    assert ends.dialer.receive(reply) is not None
    assert ends.dialer.receive(reply) is None


def test_probes_may_overtake_each_other_but_not_come_from_long_ago(ends: Ends) -> None:
    probes = [ends.dialer.probe()[1] for _ in range(5000)]
    assert ends.acceptor.receive(probes[5])
    assert ends.acceptor.receive(probes[3])
    assert ends.acceptor.receive(probes[3]) is None
    assert ends.acceptor.receive(probes[4999])
    assert ends.acceptor.receive(probes[4999 - 4095])
    assert ends.acceptor.receive(probes[4]) is None  # behind the window: cannot be told
    assert ends.counters == {"probe:replayed": 2}


def test_an_own_probe_sent_back_is_no_probe_of_the_other(ends: Ends) -> None:
    assert ends.dialer.receive(ends.dialer.probe(1200)[1]) is None


def test_other_keys_do_not_open_it(ends: Ends) -> None:
    stranger = Prober(ProbeKeys.derive(bytes(32), is_dialer=True), Counter())
    assert stranger.tag != ends.acceptor.tag
    assert ends.acceptor.receive(stranger.probe(1200)[1]) is None
    assert ends.counters == {"probe:forged": 1}


def test_a_cut_probe_says_nothing_about_its_size(ends: Ends) -> None:
    assert ends.acceptor.receive(ends.dialer.probe(1472)[1][:1400]) is None
    assert ends.counters == {"probe:cut": 1}


def test_a_reply_to_nothing_is_dropped(ends: Ends) -> None:
    reply = ends.answer(ends.dialer.probe(1200)[1])
    newcomer = Prober(ProbeKeys.derive(BINDING, is_dialer=True), Counter())
    assert newcomer.receive(reply) is None


def test_unanswered_probes_are_forgotten_in_the_end(ends: Ends) -> None:
    probes = [ends.dialer.probe(1200)[1] for _ in range(2000)]
    assert len(ends.dialer._outstanding) <= 1024
    assert ends.dialer.receive(ends.answer(probes[0])) is None
    assert ends.dialer.receive(ends.answer(probes[-1])) is not None


@given(st.integers(0, OVERHEAD * 8 - 1))
def test_every_bit_of_the_header_is_authenticated(bit: int) -> None:
    ends = Ends()
    probe = bytearray(ends.dialer.probe(1200)[1])
    probe[bit // 8] ^= 1 << bit % 8
    assert ends.acceptor.receive(bytes(probe)) is None
    assert ends.counters["probe:forged"] == 1


@given(st.binary(max_size=200))
def test_random_bytes_are_dropped_and_counted(data: bytes) -> None:
    ends = Ends()
    assert ends.acceptor.receive(data) is None
    assert ends.counters.total() == 1
