"""A row of results, how medians are taken, and how rows are printed and written."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from bench.targets import target_of


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One measure beside its reference, both medians of alternating rounds.

    The target bounds the ratio, or the value where there is no ratio. `met` is None where
    there is no target or nothing was measured; `note` then says why.
    """

    measure: str
    engine: str
    value: float | None
    unit: str
    reference: float | None
    ratio: float | None
    target: float | None
    met: bool | None
    note: str = ""
    against: str = ""  # what the reference is


Measure = Callable[[], Awaitable[float]]


def row(
    measure: str,
    engine: str,
    value: float,
    unit: str,
    *,
    reference: float | None = None,
    against: str = "",
    note: str = "",
) -> Row:
    """A measured row, judged by its target."""
    ratio = value / reference if reference else None
    target = target_of(measure, engine)
    figure = value if ratio is None else ratio
    return Row(
        measure=measure,
        engine=engine,
        value=value,
        unit=unit,
        reference=reference,
        ratio=ratio,
        target=None if target is None else target.limit,
        # A row that should have a reference and has none is not judged.
        met=None if target is None or (against and ratio is None) else target.met(figure),
        note=note,
        against=against,
    )


def unmeasured(measure: str, engine: str, reason: str) -> Row:
    """A row that says why there is no figure."""
    target = target_of(measure, engine)
    return Row(
        measure=measure,
        engine=engine,
        value=None,
        unit="",
        reference=None,
        ratio=None,
        target=None if target is None else target.limit,
        met=None,
        note=reason,
    )


async def medians(
    contestants: Sequence[Measure],
    *,
    rounds: int,
    tell: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """Run all in turn, `rounds` times; the median of each.

    Alternating makes drifts of a noisy machine hit all alike. `tell` hears of each round.
    """
    values: list[list[float]] = [[] for _ in contestants]
    for number in range(rounds):
        tell(number + 1)
        for contestant, into in zip(contestants, values, strict=True):
            into.append(await contestant())
    return [statistics.median(each) for each in values]


def show(rows: Sequence[Row]) -> None:
    """Print a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    left = ("measure", "engine", "against")
    for column in (*left[:2], "value", "unit", left[2], "its value", "ratio", "target", "met"):
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    for each in rows:
        table.add_row(
            each.measure,
            each.engine,
            _figure(each.value),
            each.unit,
            each.against,
            _figure(each.reference),
            "-" if each.ratio is None else f"{each.ratio:.3g} x",
            str(target_of(each.measure, each.engine) or "-"),
            {True: "yes", False: "[bold red]no[/]", None: "-"}[each.met],
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140
    console.print(table)
    for each in rows:
        if each.note:
            console.print(f"{each.measure} ({each.engine}): {each.note}", markup=False)


def write(rows: Sequence[Row], file: Path) -> None:
    """The rows as a JSON list."""
    file.write_bytes(msgspec.json.format(msgspec.json.encode(list(rows))) + b"\n")


def tell(what: str) -> None:
    """Progress, where somebody looks; nothing to clear it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{what}")
        sys.stderr.flush()


def finish(rows: Sequence[Row], file: Path | None) -> int:
    """Print the rows, write them if there is a file; the exit status: 1 if a target is missed."""
    tell("")
    show(rows)
    if file is not None:
        write(rows, file)
    return 0 if all(each.met is not False for each in rows) else 1


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
