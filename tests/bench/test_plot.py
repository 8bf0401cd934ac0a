"""The plot of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import plot
from bench.rows import row, unmeasured, write

PNG = b"\x89PNG\r\n\x1a\n"
ROWS = [
    row("echo128_c64", "aioquic", 50_000, "calls/s", reference=2_500, against="grpc"),
    row("echo128_c64", "qh3", 50_000, "calls/s", reference=5_000, against="grpc"),
    row("mixed_p50", "qh3", 2.0, "ms"),
    unmeasured("bulk_tcp", "qh3", "no such path"),
]


def test_rows_are_drawn_by_their_distance_from_the_target() -> None:
    assert plot.shares(ROWS) == {
        "echo128_c64": {"aioquic": 2.0, "qh3": 0.5},
        "mixed_p50": {"qh3": 2.0},
    }


def test_an_image_is_made_from_what_a_run_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    write(ROWS, tmp_path / "rows.json")
    assert plot.main([str(tmp_path / "rows.json"), str(tmp_path / "rows.png")]) == 0
    assert (tmp_path / "rows.png").read_bytes().startswith(PNG)
    assert "rows.png" in capsys.readouterr().out


def test_another_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('{"measure": 1}')
    with pytest.raises(SystemExit, match="make it with: python -m bench.rpc --json"):
        plot.read(tmp_path / "rows.json")


def test_nothing_to_draw_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing to draw"):
        plot.draw(ROWS[3:], tmp_path / "rows.png")
