"""The supervisor's rules, without I/O: states, pauses, who is redialled when."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from lattica.config import LinkConfig
from lattica.errors import LinkLostError, UnreachableError
from lattica.identity.keys import PeerId
from lattica.link.supervision import MAX_PEERS, PeerEvent, PeerState, Supervisor

CONFIG = LinkConfig(backoff_base=1.0, backoff_max=10.0, stable_after=5.0)
PEER = PeerId(b"p" * 32)
GONE = LinkLostError("gone")
SILENT = UnreachableError("silence")


def supervisor(chance: float = 0.999) -> Supervisor:
    return Supervisor(CONFIG, chance=lambda: chance)


def told(event: PeerEvent | None) -> tuple[PeerState, PeerState]:
    assert event is not None
    return event.before, event.state


def test_a_peer_goes_through_its_states_and_each_change_is_told_once() -> None:
    peers = supervisor()
    assert peers.state(PEER) is PeerState.DOWN
    assert told(peers.dialling(PEER, 0.0)) == (PeerState.DOWN, PeerState.CONNECTING)
    assert peers.dialling(PEER, 0.1) is None
    assert told(peers.up(PEER, "linked", 0.2)) == (PeerState.CONNECTING, PeerState.UP)
    assert peers.heard(PEER, 0.3) is None
    event = peers.suspect(PEER, "silent for 1.0 s", 1.2)
    assert told(event) == (PeerState.UP, PeerState.SUSPECT)
    assert event is not None
    assert (event.reason, event.at) == ("silent for 1.0 s", 1.2)
    assert peers.suspect(PEER, "silent for 1.1 s", 1.3) is None
    assert told(peers.heard(PEER, 1.4)) == (PeerState.SUSPECT, PeerState.UP)
    event = peers.lost(PEER, GONE, 20.0)
    assert told(event) == (PeerState.UP, PeerState.DOWN)
    assert event is not None
    assert event.error is GONE


def test_who_is_not_linked_cannot_be_suspected() -> None:
    peers = supervisor()
    assert peers.suspect(PEER, "a hint", 0.0) is None
    peers.dialling(PEER, 0.0)
    assert peers.suspect(PEER, "a hint", 0.1) is None
    assert peers.state(PEER) is PeerState.CONNECTING


def test_a_failed_dial_while_the_peer_has_linked_to_us_changes_nothing() -> None:
    peers = supervisor()
    peers.dialling(PEER, 0.0)
    peers.up(PEER, "linked", 0.1)
    assert peers.failed(PEER, SILENT, 0.2) is None
    assert peers.state(PEER) is PeerState.UP


def test_pauses_double_up_to_the_limit() -> None:
    peers = supervisor()
    waits = []
    for _ in range(6):
        peers.dialling(PEER, 0.0)
        peers.failed(PEER, SILENT, 0.0)
        waits.append(round(peers.wait(PEER, 0.0)))
    assert waits == [1, 2, 4, 8, 10, 10]
    assert peers.failures(PEER) == (6, SILENT)
    assert peers.wait(PEER, 11.0) == 0.0


@given(st.floats(0, 0.999999), st.integers(1, 5000))
def test_every_pause_is_within_its_bounds(chance: float, failures: int) -> None:
    peers = supervisor(chance)
    for _ in range(min(failures, 40)):
        peers.failed(PEER, SILENT, 100.0)
    assert 0.0 <= peers.wait(PEER, 100.0) < CONFIG.backoff_max


def test_news_of_a_peer_ends_its_pause() -> None:
    peers = supervisor()
    for _ in range(5):
        peers.failed(PEER, SILENT, 0.0)
    peers.reset(PEER)
    assert peers.wait(PEER, 0.0) == 0.0
    peers.failed(PEER, SILENT, 0.0)
    assert peers.wait(PEER, 0.0) < CONFIG.backoff_base


def test_a_link_that_never_lasts_is_made_ever_more_rarely() -> None:
    peers = supervisor()
    now = 0.0
    waits = []
    for _ in range(4):
        peers.dialling(PEER, now)
        peers.up(PEER, "linked", now)
        peers.lost(PEER, GONE, now + 0.1)
        waits.append(round(peers.wait(PEER, now + 0.1)))
        now += 60.0
    assert waits == [1, 2, 4, 8]


def test_a_link_that_lasted_is_made_again_at_once() -> None:
    peers = supervisor()
    for _ in range(3):
        peers.failed(PEER, SILENT, 0.0)
    peers.up(PEER, "linked", 1.0)
    peers.lost(PEER, GONE, 1.0 + CONFIG.stable_after)
    assert peers.wait(PEER, 1.0 + CONFIG.stable_after) == 0.0


def test_a_link_closed_on_purpose_is_no_failure() -> None:
    peers = supervisor()
    for now in range(5):
        peers.up(PEER, "linked", float(now))
        peers.lost(PEER, GONE, now + 0.1, is_ours=True)
        assert peers.wait(PEER, now + 0.1) == 0.0


def test_kept_peers_are_due_after_their_pause_until_released() -> None:
    peers = supervisor()
    assert peers.next_due() is None
    peers.keep(PEER)
    peers.keep(PEER)
    assert peers.due(0.0) == [PEER]
    peers.dialling(PEER, 0.0)
    assert peers.due(100.0) == []  # a dial is under way
    peers.failed(PEER, SILENT, 0.0)
    due = peers.next_due()
    assert due is not None
    assert 0 < due < CONFIG.backoff_base
    assert peers.due(due - 0.01) == []
    assert peers.due(due) == [PEER]
    peers.release(PEER)
    assert peers.due(due) == [PEER]  # the other still wants it
    peers.release(PEER)
    assert peers.due(due) == []
    assert peers.next_due() is None


def test_many_that_lose_a_kept_peer_at_once_do_not_come_back_at_once() -> None:
    draws = itertools.cycle([0.1, 0.5, 0.9])
    peers = Supervisor(CONFIG, chance=lambda: next(draws))
    everyone = [PeerId(bytes([number]) * 32) for number in range(3)]
    for each in everyone:
        peers.keep(each)
        peers.up(each, "linked", 0.0)
        peers.lost(each, GONE, 100.0)
    assert [round(peers.wait(each, 100.0), 3) for each in everyone] == [0.1, 0.5, 0.9]


def test_memory_of_strangers_is_bounded_and_open_ones_stay() -> None:
    peers = supervisor()
    peers.up(PEER, "linked", 0.0)
    for number in range(MAX_PEERS + 10):
        peers.failed(PeerId(number.to_bytes(32, "big")), SILENT, 0.0)
    assert len(peers) <= MAX_PEERS
    assert peers.state(PEER) is PeerState.UP
