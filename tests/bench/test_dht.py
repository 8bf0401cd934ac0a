"""The measurements of the DHT run, and judge what they find."""

from __future__ import annotations

from functools import partial

import pytest

from bench.dht import churn, cost, rows_of, select, simulate, writers
from bench.dht_lies import steered


def test_measures_are_chosen_by_their_names_and_beginnings() -> None:
    assert select(["dht_rounds_10"]) == ["dht_rounds_10"]
    assert select(["dht_rec", "dht_idle"]) == ["dht_recall", "dht_idle"]
    assert len(select([])) > 5
    with pytest.raises(SystemExit, match="no measure begins with 'speed'"):
        select(["speed"])


def test_records_are_found_while_peers_come_and_go_lose_packets_and_lie() -> None:
    found = simulate(partial(churn, 40, minutes=5))
    assert found.gets > 50
    assert found.recall >= 0.99
    assert found.closest >= 0.97


def test_liars_that_steer_look_ups_hide_little() -> None:
    found = simulate(partial(steered, 100, paths=2, share=0.1, lookups=15))
    assert found.recall >= 0.9
    assert 20 < found.queries < 60


def test_look_ups_ask_those_who_are_close_and_not_everybody() -> None:
    small, large = simulate(partial(cost, 30, lookups=10)), simulate(partial(cost, 400, lookups=10))
    assert 1.0 <= small.rounds <= large.rounds < 6.0
    assert large.queries < 60


def test_no_writer_of_one_key_is_lost() -> None:
    assert simulate(partial(writers, 30, peers=40)) == 0


def test_a_row_is_judged_by_its_target() -> None:
    (row,) = rows_of(["dht_rounds_10"], 10, None)
    assert row.met is True
    assert row.target == 1.2
    assert "queries" in row.note
