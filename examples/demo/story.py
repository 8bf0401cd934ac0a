"""What the demo says, and what it has to keep."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Story:
    """Chapters and promises. Plain lines where nobody looks at a terminal."""

    def __init__(self, promises: Sequence[str]) -> None:
        """`promises` are all that must hold; one that is never kept counts as broken."""
        self.console = Console(highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = 120
        self._promises: dict[str, tuple[bool, str] | None] = dict.fromkeys(promises)
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the story began."""
        return time.monotonic() - self._started

    @contextmanager
    def chapter(self, title: str) -> Iterator[None]:
        """One part of the story."""
        self.console.print(f"\n[bold cyan]{escape(title)}[/]")
        yield

    def say(self, text: str) -> None:
        """One line; may hold markup."""
        self.console.print(f"  {text}")

    def raw(self, text: str) -> None:
        """Text as it is, without a line's end: for what arrives piece by piece."""
        self.console.print(text, end="", markup=False, style="green")

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Show that something is under way."""
        if self.console.is_terminal:
            with self.console.status(text):
                yield
        else:
            self.console.print(f"  ... {escape(text)}")
            yield

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table."""
        result = Table(box=None, padding=(0, 2), header_style="bold")
        for column in columns:
            result.add_column(column, no_wrap=True)
        for row in rows:
            result.add_row(*(escape(cell) for cell in row))
        self.console.print(result)

    def keep(self, promise: str, held: bool, figure: str) -> None:
        """Say whether a promise held, with its figure."""
        if promise not in self._promises:
            raise KeyError(promise)
        before = self._promises[promise]
        held = held and (before is None or before[0])
        self._promises[promise] = (held, figure)
        self.say(f"{_mark(held)} {escape(promise)}: {escape(figure)}")

    def summary(self) -> bool:
        """Print every promise; whether all were kept."""
        self.console.print("\n[bold cyan]What was promised, and what was seen[/]")
        kept = True
        width = max(map(len, self._promises), default=0) + 2
        for promise, result in self._promises.items():
            held, figure = result or (False, "not reached")
            kept = kept and held
            self.console.print(f"  {_mark(held)} {escape(promise):<{width}} {escape(figure)}")
        return kept


def _mark(held: bool) -> str:
    return "[green]\u2714[/]" if held else "[bold red]\u2718[/]"
