"""The example of the RPC layer, as its reader runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_prints_what_each_call_gave() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.rpc_echo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:5] == [
        "Greeting(text='HELLO WORLD', to='client')",
        "b'desserts'",
        "[0, 1, 2, 3, 4]",
        "5050",
        "ZeroDivisionError: float division by zero",
    ]
    assert lines[5].startswith("refused: greet")
    assert lines[6].startswith("too late: ")
    assert done.stderr == ""
