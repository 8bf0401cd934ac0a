"""The to-do list, kept by processes as its readers run it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def todo(home: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """One machine's list; it ends by itself when its input does."""
    command = [sys.executable, "-u", "-m", "examples.todo", str(home), *words]
    process = subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(30) == 0
        finally:
            process.kill()


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def shown(process: subprocess.Popen[str], *items: str) -> None:
    """Read on until the list has just these items; the suite's time limit ends a vain wait."""
    assert process.stdout is not None
    page: list[str] = []
    for line in process.stdout:
        if line == "--\n":
            if page == list(items):
                return
            page = []
        else:
            page.append(line.rstrip("\n"))
    raise AssertionError(f"the list ended without {items}")


def test_two_machines_share_a_list_that_outlives_them(tmp_path: Path) -> None:
    with todo(tmp_path / "one") as one:
        assert one.stdout is not None
        join, ticket = one.stdout.readline().strip().rsplit(" ", 1)
        assert join == "others join with: --ticket"
        with todo(tmp_path / "two", "--ticket", ticket) as two:
            say(one, "buy milk")
            shown(two, "[ ] buy milk")
            say(two, "done buy milk")
            shown(one, "[x] buy milk")
    with todo(tmp_path / "one") as again:
        say(again, "call ann")
        shown(again, "[x] buy milk", "[ ] call ann")
