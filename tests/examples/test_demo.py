"""The demo as a person meets it: stopped half-way, and with a model that is not there.

That every promise of it holds is shown by the demo itself, which `.ci/run` runs.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from examples.demo.story import Story
from tests.processes import still_running

COMMAND = [sys.executable, "-u", "-m", "examples.demo"]


def test_ctrl_c_leaves_no_process_behind() -> None:
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stdout is not None
            for line in demo.stdout:  # ends with the demo at the latest
                if "starting beta" in line:
                    break
            children = psutil.Process(demo.pid).children(recursive=True)
            assert len(children) >= 2
            demo.send_signal(signal.SIGINT)
            rest = demo.communicate(timeout=30)[0]
        finally:
            demo.kill()
    assert demo.returncode == 130
    assert "no process is left behind" in rest
    assert not still_running(children)


def test_a_model_that_is_not_there_is_told_and_fails(tmp_path: Path) -> None:
    demo = subprocess.run(
        [*COMMAND, "--model", str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert demo.returncode == 1
    assert "no model directory" in demo.stdout
    assert "not reached" in demo.stdout
    assert "logs are in" in demo.stdout


def test_a_promise_is_kept_only_if_every_look_at_it_held(
    capsys: pytest.CaptureFixture[str],
) -> None:
    story = Story(["one", "two"])
    story.keep("one", True, "first look")
    assert story.summary() is False, "two was not reached"
    story.keep("two", False, "broken")
    story.keep("two", True, "too late")
    assert story.summary() is False
    assert "too late" in capsys.readouterr().out
    whole = Story(["one"])
    whole.keep("one", True, "3 ms")
    assert whole.summary() is True
    with pytest.raises(KeyError):
        whole.keep("three", True, "")


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    story = Story([])
    start = time.monotonic()
    with story.busy("working"):
        pass
    story.raw("abc")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "working" in out
    assert story.elapsed >= 0
    assert time.monotonic() - start < 5
