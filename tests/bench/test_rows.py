"""Rows: medians in turn, the verdict, and the form in which they are written."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from bench.rows import Row, medians, row, show, unmeasured, write
from bench.targets import ENGINES, TARGETS, Target, target_of

KEYS = ["measure", "engine", "value", "unit", "reference", "ratio", "target", "met"]


def test_the_ratio_is_judged_where_there_is_one() -> None:
    fast = row("echo128_c64", "aioquic", 50_000, "calls/s", reference=5_000, against="grpc")
    assert (fast.ratio, fast.target, fast.met) == (10.0, 10.0, True)
    slow = row("echo128_c64", "aioquic", 49_999, "calls/s", reference=5_000, against="grpc")
    assert slow.met is False


def test_each_engine_has_its_own_target() -> None:
    one, other = (
        row("echo128_c64", engine, 15_000, "calls/s", reference=1_000, against="grpc")
        for engine in ENGINES
    )
    assert (one.met, other.met) == (True, False)


def test_the_value_is_judged_where_there_is_no_ratio() -> None:
    assert row("mixed_p50", "qh3", 4.0, "ms").met is True
    assert row("mixed_p50", "qh3", 4.1, "ms").met is False


def test_less_is_better_for_times() -> None:
    def latency(value: float) -> bool | None:
        return row("echo128_c1_p50", "qh3", value, "ms", reference=1.0, against="grpc").met

    assert latency(0.35) is True
    assert latency(0.36) is False


def test_without_its_reference_a_row_is_not_judged() -> None:
    missing = row("echo128_c64", "aioquic", 1.0, "calls/s", reference=None, against="grpc")
    assert (missing.ratio, missing.met) == (None, None)
    assert missing.target == 10.0


def test_measures_without_a_target_have_no_verdict() -> None:
    free = row("tokens/s", "aioquic", 3.0, "tokens/s", reference=2.0, against="other")
    assert (free.ratio, free.target, free.met) == (1.5, None, None)


def test_share_of_a_target_is_above_one_when_it_is_met() -> None:
    for target, good, bad in ((Target(10, True), 12, 8), (Target(10, False), 8, 12)):
        assert target.met(good)
        assert target.share(good) > 1
        assert not target.met(bad)
        assert target.share(bad) < 1


def test_the_table_of_the_issue() -> None:
    """The bounds that the project has promised."""
    promised = {
        "echo128_c64": ("≥ 10", "≥ 20"),
        "echo128_c64_floor": ("≥ 0.25", "≥ 0.5"),
        "echo128_c1_p50": ("≤ 0.6", "≤ 0.35"),
        "echo128_c1024": ("≥ 1", "≥ 1"),
        "upload256k_c8": ("≥ 1.2", "≥ 2.5"),
        "echo256k_c8": ("≥ 1", "≥ 2"),
        "bulk_quic": ("≥ 0.5", "≥ 1.3"),
        "bulk_quic_1452": ("≥ 0.08", "≥ 0.5"),
        "bulk_tcp": ("≥ 0.4", "≥ 0.8"),
        "items128": ("≥ 5", "≥ 8"),
        "mixed_p50": ("≤ 4", "≤ 4"),
        "mixed_bulk": ("≥ 0.7", "≥ 0.7"),
        "wan_clean": ("≥ 0.9", "≥ 0.9"),
        "wan_loss1": ("≥ 0.7", "≥ 0.7"),
        "wan_echo128_c256": ("≥ 0.9", "≥ 0.9"),
        "wan_echo256k_c16": ("≥ 0.85", "≥ 0.85"),
        "upload64m_memory": ("≤ 1.5", "≤ 1.5"),
        "upload64m_memory_file": ("≤ 0.1", "≤ 0.1"),
        "idle_links": ("≤ 120", "≤ 120"),
        "idle_links_cpu": ("≤ 5", "≤ 5"),
        "connect": ("≤ 1", "≤ 1"),
        "dead_peer": ("≤ 0.5", "≤ 0.5"),
        "dead_peer_silent": ("≤ 2", "≤ 2"),
        "dead_peer_frozen": ("≤ 5", "≤ 5"),
    }
    found = {m: tuple(str(target_of(m, engine)) for engine in ENGINES) for m in TARGETS}
    assert found == promised


@pytest.mark.anyio
async def test_contestants_run_in_turn_and_medians_are_taken() -> None:
    order: list[str] = []

    def contestant(name: str, *values: float) -> Callable[[], Awaitable[float]]:
        left = list(values)

        async def run() -> float:
            order.append(name)
            return left.pop(0)

        return run

    told: list[int] = []
    found = await medians(
        [contestant("a", 1, 100, 2), contestant("b", 7, 8, 9)], rounds=3, tell=told.append
    )
    assert found == [2, 8]
    assert order == ["a", "b"] * 3
    assert told == [1, 2, 3]


def test_json_has_the_same_keys_in_every_row(tmp_path: Path) -> None:
    rows = [
        row("mixed_p50", "qh3", 3.0, "ms"),
        unmeasured("bulk_tcp", "aioquic", "no such path here"),
    ]
    write(rows, tmp_path / "rows.json")
    measured, skipped = json.loads((tmp_path / "rows.json").read_text())
    assert list(measured)[:8] == KEYS
    assert measured["met"] is True
    assert list(skipped)[:8] == KEYS
    assert (skipped["value"], skipped["met"]) == (None, None)
    assert skipped["note"] == "no such path here"


def test_the_table_shows_what_is_missed_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Row] = [
        row("connect", "qh3", 9.0, "ms", reference=3.0, against="grpc"),
        unmeasured("bulk_tcp", "qh3", "no such path here"),
    ]
    show(rows)
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == ["connect", "qh3", "9", "ms", "grpc", "3", "3", "x", "≤", "1", "no"]
    assert "bulk_tcp (qh3): no such path here" in out
