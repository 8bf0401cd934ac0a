"""Accounts of bytes: how long they last, and how many there are."""

from __future__ import annotations

from lattica.config import RelayConfig
from lattica.reach.allowances import Allowances
from tests.reach.relay_bench import peer_id

CONFIG = RelayConfig(allowance=1000, allowance_period=60.0)


def test_a_period_begins_with_the_first_byte() -> None:
    allowances = Allowances(CONFIG)
    allowances.spend(peer_id(1), 0, 50.0)
    assert len(allowances) == 0
    allowances.spend(peer_id(1), 400, 100.0)
    allowances.spend(peer_id(2), 1000, 110.0)
    assert allowances.pause(peer_id(1), 110.0) == 0.0
    assert allowances.pause(peer_id(2), 110.0) == 60.0
    allowances.spend(peer_id(1), 600, 130.0)
    assert allowances.pause(peer_id(1), 130.0) == 30.0
    assert allowances.pause(peer_id(1), 160.0) == 0.0
    assert allowances.pause(peer_id(2), 160.0) == 10.0
    assert allowances.pause(peer_id(3), 160.0) == 0.0


def test_there_are_never_too_many_accounts() -> None:
    allowances = Allowances(CONFIG, max_peers=5)
    for number in range(20):
        allowances.spend(peer_id(number), 1000, 100.0 + number)
        assert len(allowances) <= 5
    assert allowances.pause(peer_id(0), 120.0) == 0.0  # the oldest are forgotten
    assert allowances.pause(peer_id(19), 120.0) > 0.0
    assert allowances.pause(peer_id(19), 200.0) == 0.0
    assert len(allowances) == 0
