"""The picture: held-out accuracy over steps, one line per seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file, not a window

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator, PercentFormatter

from examples.rollouts.training import Run


def draw(runs: Sequence[Run], path: Path) -> None:
    """Write a PNG."""
    figure, axes = plt.subplots(figsize=(6.4, 4.0), dpi=120, layout="constrained")
    for run in runs:
        steps, shares = zip(*run.curve, strict=True)
        axes.plot(steps, shares, marker="o", markersize=4, label=f"seed {run.seed}")
    axes.set_xlabel("policy step")
    axes.set_ylabel("held-out accuracy, three-digit sums")
    axes.set_title("Three peers sample, one learner steps")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path)
    plt.close(figure)
