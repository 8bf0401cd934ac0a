"""The link's sans-IO parts: liveness, arbitration's rule, closings, addresses, headers, secrets."""

from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.config import LinkConfig
from lattica.errors import LinkLostError, LinkRefusedError, WrongPeerError
from lattica.identity.keys import PeerId
from lattica.link import header
from lattica.link.book import MAX_ADDRESSES, AddressBook
from lattica.link.closing import LINGER, MAX_CLOSING, Closing
from lattica.link.liveness import HINT_PATIENCE, REFRESH, REPEATED_HINT_PATIENCE, Liveness, Verdict
from lattica.link.refusals import CloseCode, DuplicateLinkError, code_of, error_of
from lattica.link.secrets import SecretsLog
from lattica.path.interface import VirtualAddress

CONFIG = LinkConfig(heartbeat=0.5, dead_after=2.0)
ADDRESS = VirtualAddress("test", 1)


# ---------------------------------------------------------------------- liveness


def test_a_talking_peer_is_not_pinged() -> None:
    liveness = Liveness(CONFIG, 0.0)
    for tenth in range(1, 50):
        liveness.on_heard(tenth / 10)
        assert liveness.check(tenth / 10) is Verdict.FINE


def timeline(liveness: Liveness, now: float) -> list[tuple[float, Verdict]]:
    """What a link does that hears nothing, looked at only when it asks to be."""
    steps = []
    while not steps or steps[-1][1] is not Verdict.DEAD:
        now = liveness.due(now)
        verdict = liveness.check(now)
        if verdict is not Verdict.FINE:
            steps.append((now, verdict))
    return steps


def test_a_silent_peer_is_asked_then_pinged_again_and_again_then_given_up() -> None:
    steps = timeline(Liveness(CONFIG, 0.0), 0.0)
    assert steps[0] == (CONFIG.heartbeat, Verdict.BEAT)
    assert steps[-1] == (CONFIG.dead_after, Verdict.DEAD)
    pings = [at for at, verdict in steps[1:-1] if verdict is Verdict.PING]
    assert len(pings) == len(steps) - 2 >= 4
    assert all(0 < after - before <= 0.2 for before, after in itertools.pairwise(pings))


def test_a_far_peer_is_given_the_time_to_answer() -> None:
    liveness = Liveness(CONFIG, 0.0)
    liveness.check(CONFIG.heartbeat)
    liveness.expect(0.4)
    assert liveness.check(CONFIG.heartbeat + 0.5) is Verdict.FINE
    assert liveness.check(CONFIG.heartbeat + 0.7) is Verdict.PING


def test_a_dialer_lets_the_acceptor_ask_first_and_one_exchange_serves_both() -> None:
    dialer, acceptor = Liveness(CONFIG, 0.0, is_dialer=True), Liveness(CONFIG, 0.0)
    asked = acceptor.due(0.0)
    assert acceptor.check(asked) is Verdict.BEAT
    assert dialer.check(asked) is Verdict.FINE
    dialer.on_beat(asked + 0.05)
    acceptor.on_beat(asked + 0.1)
    assert acceptor.check(acceptor.due(asked + 0.1) - 0.01) is Verdict.FINE
    assert acceptor.due(asked + 0.1) < dialer.due(asked + 0.1)


def test_quic_itself_is_woken_now_and_then_under_beats() -> None:
    liveness = Liveness(CONFIG, 0.0)
    now, kinds = 0.0, []
    while now < 2 * REFRESH + 10:
        now = liveness.due(now)
        kinds.append(liveness.check(now))
        if kinds[-1] is Verdict.WAKE:
            liveness.on_heard(now)
        else:
            liveness.on_beat(now)
    assert kinds.count(Verdict.WAKE) == 2
    assert Verdict.DEAD not in kinds


def test_a_link_is_suspect_before_it_is_dead_and_looked_at_when_it_becomes_so() -> None:
    liveness = Liveness(CONFIG, 0.0)
    now = 0.0
    while not liveness.is_suspect(now):
        assert liveness.check(now) is not Verdict.DEAD
        now = liveness.due(now)
    assert CONFIG.heartbeat * 1.25 < now < CONFIG.dead_after - 0.3
    liveness.on_beat(now)
    assert not liveness.is_suspect(now)


def test_an_answer_starts_the_count_again() -> None:
    liveness = Liveness(CONFIG, 0.0)
    liveness.on_heard(1.5)
    assert liveness.check(3.25) is not Verdict.DEAD
    assert liveness.check(3.5) is Verdict.DEAD


def test_a_hint_asks_once_and_then_waits_a_moment_only() -> None:
    liveness = Liveness(CONFIG, 0.0)
    assert liveness.on_hint(0.1) is Verdict.PING
    assert liveness.check(0.1 + HINT_PATIENCE - 0.01) is not Verdict.DEAD
    assert liveness.check(0.1 + HINT_PATIENCE) is Verdict.DEAD


def test_a_hint_that_is_repeated_to_the_question_is_believed_sooner() -> None:
    liveness = Liveness(CONFIG, 0.0)
    assert liveness.on_hint(0.1) is Verdict.PING
    assert liveness.on_hint(0.101) is Verdict.FINE
    end = 0.101 + REPEATED_HINT_PATIENCE
    assert liveness.check(end - 0.01) is not Verdict.DEAD
    assert liveness.due(0.102) <= end
    assert liveness.check(end) is Verdict.DEAD


def test_a_brisk_link_asks_sooner_and_is_given_up_no_sooner() -> None:
    liveness = Liveness(CONFIG, 0.0)
    liveness.set_brisk(True)
    steps = timeline(liveness, 0.0)
    assert steps[0] == (CONFIG.brisk, Verdict.BEAT)
    assert steps[-1] == (CONFIG.dead_after, Verdict.DEAD)
    liveness = Liveness(CONFIG, 0.0)
    liveness.set_brisk(True)
    liveness.set_brisk(False)
    assert timeline(liveness, 0.0)[0] == (CONFIG.heartbeat, Verdict.BEAT)


def test_an_answer_refutes_a_hint() -> None:
    liveness = Liveness(CONFIG, 0.0)
    liveness.on_hint(0.1)
    liveness.on_heard(0.2)
    assert liveness.check(0.5) is not Verdict.DEAD


def test_time_in_which_this_end_was_deaf_does_not_count() -> None:
    liveness = Liveness(CONFIG, 0.0)
    liveness.on_hint(0.1)
    liveness.on_stall(10.0, 10.1)
    assert liveness.check(10.1) is not Verdict.DEAD
    assert liveness.heard == 10.0
    liveness.on_stall(100.0, 10.2)
    assert liveness.heard == 10.2  # never in the future


# ----------------------------------------------------------------------- closing


def test_last_words_are_repeated_ever_more_rarely() -> None:
    closing = Closing()
    closing.add([b"one", b"two"], [b"bye"], ADDRESS, 0.0)
    answers = [closing.answer(b"one") for _ in range(9)]
    assert all(each is not None for each in answers)
    said = [index + 1 for index, each in enumerate(answers) if each and each.datagrams]
    assert said == [1, 2, 4, 8]
    assert closing.answer(b"other") is None


def test_last_words_are_forgotten_in_time_and_bounded() -> None:
    closing = Closing()
    closing.add([b"old"], [b"bye"], ADDRESS, 0.0)
    closing.expire(LINGER)
    assert closing.answer(b"old") is None
    for index in range(MAX_CLOSING + 5):
        closing.add([b"%d" % index], [b"bye"], ADDRESS, 0.0)
    assert len(closing) == MAX_CLOSING
    assert closing.answer(b"0") is None


# ---------------------------------------------------------------- address book


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32, "big"))


def test_the_newest_addresses_come_first_and_once() -> None:
    book = AddressBook()
    book.learn(peer(1), ["a:1", "b:1"])
    book.learn(peer(1), ["b:1", "c:1"])
    assert book.get(peer(1)) == ("b:1", "c:1", "a:1")
    book.learn(peer(1), [])
    book.forget(peer(1), "b:1")
    book.forget(peer(1), "never:1")
    assert book.get(peer(1)) == ("c:1", "a:1")


def test_the_book_is_bounded_in_every_direction() -> None:
    book = AddressBook(max_peers=3)
    book.learn(peer(1), ["x" * 300, *(f"host:{index}" for index in range(100))])
    assert len(book.get(peer(1))) == MAX_ADDRESSES
    for number in range(2, 6):
        book.learn(peer(number), ["a:1"])
    assert len(book) == 3
    assert book.get(peer(1)) == ()


# ---------------------------------------------------------------------- refusals


def test_typed_refusals_survive_the_wire() -> None:
    for error in (WrongPeerError("x"), DuplicateLinkError("x"), LinkRefusedError("x")):
        again = error_of(code_of(error), str(error), is_open=False)
        assert type(again) is type(error)
        assert "x" in str(again)


def test_an_open_link_is_lost_whatever_the_code() -> None:
    for code in (None, 0, 3, 999):
        assert type(error_of(code, "why", is_open=True)) is LinkLostError


def test_unknown_codes_and_unprintable_reasons_are_tamed() -> None:
    error = error_of(999, "\x1b[2Jgone\n" + "x" * 1000, is_open=False)
    assert isinstance(error, LinkRefusedError)
    assert str(error).isprintable()
    assert len(str(error)) < 300
    assert error_of(CloseCode.CLOSED, "", is_open=False).args[0].endswith("no reason given")


# ----------------------------------------------------------------------- headers


@given(st.binary(max_size=64))
def test_no_bytes_break_the_header_parser(data: bytes) -> None:
    parsed = header.parse_long(data)
    if parsed is not None:
        assert len(parsed.destination) <= 20
        assert len(header.version_negotiation(parsed, [1])) < header.MIN_INITIAL
    header.short_destination(data)


def test_a_version_negotiation_swaps_the_ids() -> None:
    asked = header.LongHeader(7, b"their-id", b"own", True)
    answer = header.parse_long(header.version_negotiation(asked, [1]))
    assert answer is not None
    assert (answer.version, answer.destination, answer.source) == (0, b"own", b"their-id")


# ----------------------------------------------------------------------- secrets


def lines(client: bytes, server: bytes) -> list[str]:
    random = os.urandom(32).hex()
    return [
        f"CLIENT_HANDSHAKE_TRAFFIC_SECRET {random} {os.urandom(32).hex()}\n",
        f"SERVER_TRAFFIC_SECRET_0 {random} {server.hex()}\n",
        f"CLIENT_TRAFFIC_SECRET_0 {random} {client.hex()}\n",
    ]


def binding(client: bytes, server: bytes) -> bytes:
    log = SecretsLog()
    for line in lines(client, server):
        log.write(line)
    return log.binding()


def test_the_binding_depends_on_both_secrets_and_nothing_else() -> None:
    one, other = os.urandom(32), os.urandom(32)
    assert binding(one, other) == binding(one, other)
    assert len({binding(one, other), binding(other, one), binding(one, one)}) == 3


def test_the_secrets_are_gone_once_used() -> None:
    log = SecretsLog()
    for line in lines(os.urandom(32), os.urandom(32)):
        log.write(line)
    kept = list(log._secrets.values())
    log.binding()
    assert all(not any(secret) for secret in kept)
    assert not log._secrets
    for line in lines(os.urandom(32), os.urandom(32)):
        log.write(line)
    assert not log._secrets
    with pytest.raises(ValueError, match="not there"):
        log.binding()
