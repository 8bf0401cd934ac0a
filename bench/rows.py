"""A row of results, and how rows are printed."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from rich.console import Console
from rich.table import Table


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One measure beside its reference, both medians of alternating rounds."""

    measure: str
    value: float
    unit: str
    reference: float | None
    reference_name: str
    ratio: float | None
    rounds: int


Measure = Callable[[], Awaitable[float]]


async def alternate(
    measure: str,
    unit: str,
    ours: Measure,
    theirs: Measure | None,
    *,
    reference_name: str,
    rounds: int = 5,
) -> Row:
    """Run both in turn, `rounds` times each, and compare the medians.

    Alternating makes drifts of a noisy machine hit both alike.
    """
    values: list[float] = []
    references: list[float] = []
    for _ in range(rounds):
        values.append(await ours())
        if theirs is not None:
            references.append(await theirs())
    value = statistics.median(values)
    reference = statistics.median(references) if references else None
    return Row(
        measure=measure,
        value=value,
        unit=unit,
        reference=reference,
        reference_name=reference_name,
        ratio=value / reference if reference else None,
        rounds=rounds,
    )


def show(rows: Sequence[Row]) -> None:
    """Print a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("measure", "value", "unit", "reference", "its value", "ratio"):
        table.add_column(column, justify="left" if column in ("measure", "reference") else "right")
    for row in rows:
        table.add_row(
            row.measure,
            _figure(row.value),
            row.unit,
            row.reference_name,
            "-" if row.reference is None else _figure(row.reference),
            "-" if row.ratio is None else f"{row.ratio:.2f} x",
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140
    console.print(table)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
