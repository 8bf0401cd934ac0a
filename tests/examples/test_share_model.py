"""The shared model, as its readers run it on two machines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "model"
COMMAND = [sys.executable, "-u", "-m", "examples.share_model"]


def taken(home: Path, *words: str) -> list[str]:
    """What the other machine prints."""
    return run(*COMMAND, str(home), *words, "--listen", "127.0.0.1:0")


def run(*command: str) -> list[str]:
    """What a program prints."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow  # transformers is imported twice
def test_what_one_machine_gives_another_loads_from_its_store(tmp_path: Path) -> None:
    giving = subprocess.Popen(
        [*COMMAND, str(tmp_path / "one"), "--give", str(MODEL), "--listen", "127.0.0.1:0"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    size = sum(path.stat().st_size for path in MODEL.iterdir() if not path.name.startswith("."))
    with giving:
        try:
            assert giving.stdout is not None
            words = giving.stdout.readline().split()
            assert words[:3] == ["others", "type:", "--take"]
            first = taken(tmp_path / "two", *words[2:])
            assert first[0].startswith(f"0 bytes were here, {size} came")
            folder = Path(first[0].rpartition(" ")[2])
            assert folder.is_relative_to(tmp_path / "two")
            assert (folder / "model.safetensors").is_symlink()
            assert first[1] == "91"  # of 34+57
        finally:
            assert giving.stdin is not None
            giving.stdin.close()
            assert giving.wait(30) == 0
    # It is there from now on, whoever has gone.
    again = taken(tmp_path / "two", *words[2:4])
    assert again[0].startswith(f"{size} bytes were here, 0 came")
    assert again[1] == first[1]
