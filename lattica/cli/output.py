"""Tables for people, JSON for programs; plain lines where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lattica.cli.plain import plain

GIB = 1 << 30


class PlainConsole(Console):
    """Prints strings as they are read, not as a terminal or rich would obey them.

    What is to be in colour is a `Text` or a `table`.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        """See rich. Nothing in a string has a meaning."""
        said = (plain(each) if isinstance(each, str) else each for each in objects)
        super().print(*said, **{"markup": False, "emoji": False, **options})


def console(*, stderr: bool = False) -> Console:
    """A console that does not wrap or colour where nobody looks."""
    result = PlainConsole(stderr=stderr, highlight=False, soft_wrap=True)
    if not result.is_terminal:
        result.width = 200
    return result


def print_json(value: Any) -> None:
    """One JSON document on a line of its own."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A plain table, a line for each row whatever is in it."""
    result = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for column in columns:
        result.add_column(column, no_wrap=True)
    for row in rows:
        result.add_row(*(Text(plain(cell, keep="")) for cell in row))
    return result


def offers(total: Mapping[str, float], available: Mapping[str, float] | None = None) -> str:
    """Resources as a person reads them: `2/4 CPU, 7.5 GiB, camera 1`."""
    parts = []
    for name, amount in total.items():
        if amount == 0:
            continue
        if name == "memory":
            parts.append(f"{amount / GIB:.1f} GiB")
            continue
        free = f"{available.get(name, 0.0):g}/" if available is not None else ""
        parts.append(f"{free}{amount:g} {name}")
    return ", ".join(parts) or "nothing"


def milliseconds(value: float | None) -> str:
    """A round-trip time for a table."""
    return "-" if value is None else f"{value:.1f} ms"


def size_text(size: float) -> str:
    """Bytes for people: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError
