"""`python -m bench.plot ROWS.json [IMAGE]`: each row's distance from its target, as bars.

A bar that reaches 1 meets its target, whichever way the target points; the scale is
logarithmic, so that twice as good and half as good are equally far from it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.rows import Row
from bench.targets import ENGINES, TARGETS, target_of

DEFAULT = Path(__file__).resolve().parent.parent / "docs" / "performance.png"
COLOURS = {"aioquic": "#4c78a8", "qh3": "#f58518"}
LEAST, MOST = 0.02, 50.0  # shares that are drawn; others end at the border


def read(file: Path) -> list[Row]:
    """The rows that `python -m bench.rpc --json` wrote.

    Raises:
        SystemExit: the file is none of those.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[Row])
    except (OSError, msgspec.MsgspecError) as error:
        raise SystemExit(
            f"{file}: {error}; make it with: python -m bench.rpc --json FILE"
        ) from None


def shares(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """By measure and engine: how far the row is, 1.0 being just at its target."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        target = target_of(row.measure, row.engine)
        figure = row.value if row.ratio is None else row.ratio
        if target is not None and figure is not None and row.met is not None:
            found.setdefault(row.measure, {})[row.engine] = target.share(figure)
    return {measure: found[measure] for measure in TARGETS if measure in found}


def draw(rows: Sequence[Row], image: Path) -> None:
    """Write the plot.

    Raises:
        SystemExit: nothing in `rows` has a target, or matplotlib is missing.
    """
    found = shares(rows)
    if not found:
        raise SystemExit("no row has a figure and a target: nothing to draw")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("matplotlib is not installed; pip install 'lattica-mesh[bench]'") from None
    figure: Any = Figure(figsize=(9, 1.2 + 0.42 * len(found)), layout="constrained")
    axes: Any = figure.subplots()
    height = 0.8 / len(ENGINES)
    for place, engine in enumerate(ENGINES):
        at = [index + (place - (len(ENGINES) - 1) / 2) * height for index in range(len(found))]
        values = [by_engine.get(engine) for by_engine in found.values()]
        drawn = [(y, value) for y, value in zip(at, values, strict=True) if value is not None]
        if not drawn:
            continue
        axes.barh(
            [y for y, _ in drawn],
            [min(max(value, LEAST), MOST) - LEAST for _, value in drawn],
            height=height * 0.9,
            left=LEAST,
            color=COLOURS[engine],
            label=engine,
        )
        for y, value in drawn:
            text = f"{value:.2f}" if value < 10 else f"{value:.0f}"
            axes.text(min(max(value, LEAST), MOST) * 1.05, y, text, va="center", fontsize=7)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(LEAST, MOST * 2)
    axes.set_xticks([0.05, 0.1, 0.25, 0.5, 1, 2, 4, 10, 25])
    axes.set_xticklabels(["0.05", "0.1", "0.25", "0.5", "target", "2 x", "4 x", "10 x", "25 x"])
    axes.minorticks_off()
    axes.set_yticks(range(len(found)))
    axes.set_yticklabels(list(found))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("how far each row is: right of the line meets its target")
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(image, dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("rows", type=Path, help="what `python -m bench.rpc --json` wrote")
    parser.add_argument("image", type=Path, nargs="?", default=DEFAULT)
    args = parser.parse_args(argv)
    draw(read(args.rows), args.image)
    print(args.image)
    return 0


if __name__ == "__main__":
    sys.exit(main())
