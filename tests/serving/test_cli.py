"""`lattica serve` and `lattica gateway`: wrong input is told before anything is started."""

from __future__ import annotations

import argparse
import shutil
import socket
from pathlib import Path

import pytest

from lattica.cli.main import build_parser, main
from serving.cli import layers
from serving.span import Span


def test_the_commands_are_there_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command, option in (("serve", "--layers A:B|auto|standby"), ("gateway", "--port")):
        with pytest.raises(SystemExit) as ended:
            build_parser([command, "--help"]).parse_args([command, "--help"])
        assert ended.value.code == 0
        assert option in capsys.readouterr().out


def test_layers_are_read_from_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert layers("0:4") == Span(0, 4)
    assert layers("auto") == "auto"
    assert layers("standby") == "standby"
    with pytest.raises(argparse.ArgumentTypeError, match="auto or standby"):
        layers("first")
    assert main_status(["serve", "m", "--layers", "4"]) == 2
    assert "write it as A:B" in capsys.readouterr().err


def main_status(words: list[str]) -> int:
    """The exit status, however it comes."""
    try:
        return main(words)
    except SystemExit as ended:
        return int(str(ended.code))


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder"])
def test_no_such_model_directory(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_status(["serve", source, "--home", str(tmp_path / "home")]) == 1
    assert "there is no model directory" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_a_folder_without_weights(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bare").mkdir()
    shutil.copy(llama / "config.json", tmp_path / "bare")
    assert main_status(["serve", str(tmp_path / "bare"), "--home", str(tmp_path / "home")]) == 1
    assert "has no weights" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_a_port_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ["gateway", "--port", str(port), "--home", str(tmp_path / "home")]
        assert main_status(words) == 1
    assert f"port {port} of 127.0.0.1 is in use by another process" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()
