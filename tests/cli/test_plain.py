"""What others have written, on a terminal."""

from __future__ import annotations

from typing import Any

import pytest

from lattica.cli import docs, main
from lattica.cli.output import console, table
from lattica.cli.plain import plain
from lattica.cli.reports import DocumentReport
from lattica.errors import LatticaError


def _report(content: dict[str, Any]) -> DocumentReport:
    return DocumentReport(name="roster", digest="d" * 64, updates={}, refused=0, content=content)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words", "plain words"),
        ("Zoë 東京 🎉 می‌خواهم", "Zoë 東京 🎉 می‌خواهم"),
        ("two\n\tlines", "two\n\tlines"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("a\rb\x7f\x08", "a\\rb\\x7f\\x08"),
        ("exe\u202egpj.", "exe\\u202egpj."),
        ("a\u2066b\u2028c", "a\\u2066b\\u2028c"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_strings_have_no_meaning_to_the_console(capsys: pytest.CaptureFixture[str]) -> None:
    console().print("[/x] [red]name[/red] :smile: \x1b[31m")
    assert capsys.readouterr().out == "[/x] [red]name[/red] :smile: \\x1b[31m\n"


def test_a_row_of_a_table_is_one_line_whatever_is_in_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console().print(table(["peer", "id"], [["[/x]\nroot", "1"], ["[red]a[/]", "\x1b[2J"]]))
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["peer", "id"]
    assert first.split() == ["[/x]\\nroot", "1"]
    assert second.split() == ["[red]a[/]", "\\x1b[2J"]


def test_a_document_of_others_is_shown_without_harm(capsys: pytest.CaptureFixture[str]) -> None:
    held = {"m\x1b[31m": {"k\x1b[2J": "v\x9b2J"}, "notes": "a\x1b[2Jb\nc"}
    docs._show(_report(held))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x9b" not in out
    assert "k\\x1b[2J" in out


def test_an_empty_document_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    docs._show(_report({}))
    assert "nothing is in it yet" in capsys.readouterr().out


def test_an_error_that_repeats_what_a_peer_said_is_harmless(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_args: object) -> None:
        raise LatticaError("they said \x1b]0;owned\x07")

    monkeypatch.setattr("lattica.cli.queries._peers", fail)
    assert main.main(["peers"]) == 1
    assert capsys.readouterr().err == "lattica: they said \\x1b]0;owned\\x07\n"
