"""The measurements of links and calls, with tiny durations: they run and say what they should."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest

from bench import connect, echo, faults, idle, memory, rpc, streams
from bench.rows import Row
from bench.run import Options, Run
from bench.targets import TARGETS

ROOT = Path(__file__).parents[2]
TINY = Options(engines=("aioquic",), rounds=1, seconds=0.05)


def test_every_target_is_measured_by_one_family() -> None:
    measured = [measure for family in rpc.families() for measure in family.MEASURES]
    assert len(measured) == len(set(measured))
    missing = set(TARGETS) - set(measured)
    assert not {each for each in missing if not each.startswith("wan_")}


def test_only_takes_names_and_their_beginnings() -> None:
    assert rpc.select(["connect"]) == ["connect"]
    assert rpc.select(["bulk"]) == ["bulk_quic", "bulk_quic_1452", "bulk_tcp"]
    assert rpc.select(["mixed_p50", "dead"])[0] == "mixed_p50"
    assert rpc.select([]) == list(TARGETS)


def test_a_mistyped_measure_is_told_before_anything_runs() -> None:
    with pytest.raises(SystemExit, match="no measure begins with 'eko'.*echo128_c64"):
        rpc.main(["--only", "eko"])


def test_the_command_writes_the_rows_it_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    words = ["--only", "echo128_c1_p50", "bulk_quic_1452", "--rounds", "1", "--seconds", "0.1"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.rpc", *words, "--engine", "aioquic", "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    rows = json.loads(file.read_text())
    assert [each["measure"] for each in rows] == ["echo128_c1_p50", "bulk_quic_1452"]
    assert all(each["value"] > 0 for each in rows)
    assert "echo128_c1_p50" in done.stdout
    assert "\r" not in done.stderr, "no progress where there is no terminal"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("family", "wanted"),
    [
        (echo, ["echo128_c64", "echo128_c64_floor", "echo128_c1024", "upload256k_c8"]),
        (streams, ["items128", "mixed_p50", "mixed_bulk"]),
        (memory, ["upload64m_memory", "upload64m_memory_file"]),
        (connect, ["connect"]),
        (faults, ["dead_peer", "dead_peer_silent", "dead_peer_frozen"]),
    ],
)
async def test_a_family_measures_what_is_wanted(family: ModuleType, wanted: list[str]) -> None:
    async with Run(TINY) as run:
        rows: list[Row] = await family.rows(run, wanted)
    assert sorted(each.measure for each in rows) == sorted(wanted)
    assert all(each.value is not None and each.value > 0 for each in rows)
    assert {each.engine for each in rows} == {"aioquic"}


@pytest.mark.anyio
async def test_idle_links_are_counted_at_the_served_peer() -> None:
    async with Run(TINY) as run:
        links, share = await idle.rows(run, idle.MEASURES, count=20)
    assert links.value is not None
    assert 1 < links.value < 5_000  # KB: more than nothing, less than a process
    assert share.value is not None
    assert 0 <= share.value < 400  # ticks of 10 ms in a window of 75
    assert links.note == "20 links", "a short run cannot pass for a whole one"


@pytest.mark.anyio
async def test_a_family_that_fails_says_so_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def broken(_run: Run, _wanted: Collection[str]) -> list[Row]:
        raise OSError("no such thing")

    async with Run(TINY) as run:
        family = cast(ModuleType, SimpleNamespace(__name__="bench.broken", rows=broken))
        rows = await rpc._family(run, family, ["connect"])
    assert [(each.measure, each.value, each.met) for each in rows] == [("connect", None, None)]
    assert "no such thing" in rows[0].note
    assert "bench.broken failed" in capsys.readouterr().err
