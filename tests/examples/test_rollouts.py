"""The rollouts example as a person runs it, and its parts that need no mesh."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

import lattica
from examples.grpo import Rollout, Settings
from examples.rollouts.fleet import Fleet, Member
from examples.rollouts.plot import draw
from examples.rollouts.training import Run
from examples.rollouts.worker import Batch
from lattica.errors import ActorUnavailableError
from tests.processes import still_running

COMMAND = [sys.executable, "-u", "-m", "examples.rollouts"]
PNG = b"\x89PNG\r\n\x1a\n"


def png_size(path: Path) -> tuple[int, int]:
    """Width and height, from the header that a PNG begins with."""
    data = path.read_bytes()
    assert data[:8] == PNG
    assert data[12:16] == b"IHDR"
    assert data[-8:-4] == b"IEND"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def batch(problems: int = 2, group: int = 3, fetched: int = 100) -> Batch:
    shape = (problems, group, 4)
    mask = np.ones(shape, dtype=np.bool_)
    mask[:, :, 3] = False
    rollout = Rollout(
        version=0,
        prompts=np.zeros((problems, 5), dtype=np.int64),
        answers=np.zeros(shape, dtype=np.int64),
        log_probs=np.zeros(shape, dtype=np.float32),
        mask=mask,
        rewards=np.zeros(shape[:2], dtype=np.float32),
    )
    return Batch(rollout, fetched, 0.1, 0.2)


def test_a_short_run_reaches_its_end_although_a_worker_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "plot.png"
    command = [*COMMAND, "--seeds", "7", "--steps", "2", "--every", "1", "--held-out", "40"]
    environment_folder = tempfile.mkdtemp(dir=tmp_path)
    with subprocess.Popen(
        ["env", f"TMPDIR={environment_folder}", *command, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        try:
            assert run.stdout is not None
            lines = []
            children: list[psutil.Process] = []
            for line in run.stdout:  # ends with the program at the latest
                lines.append(line)
                if "kill -9" in line:
                    children = psutil.Process(run.pid).children(recursive=True)
            run.wait(timeout=60)
        finally:
            run.kill()
    said = "".join(lines)
    assert "\x1b" not in said, "plain lines where there is no terminal"
    # Two steps teach too little for a promise: the status follows the accuracies.
    rose = "\u2714 held-out accuracy rose with seed 7" in said
    assert run.returncode == (0 if rose else 1), said
    assert "step  0: held-out accuracy" in said
    assert "step  2: held-out accuracy" in said
    assert "the worker on beta is lost; on with the rollouts of the other 2" in said
    assert "the worker on beta is back as process" in said
    assert "all 3 workers sampled under version 2 at the end" in said
    assert "\u2714 a killed worker came back" in said
    assert png_size(out) == (768, 480)
    assert len(children) >= 5, "three peers, two workers left"
    assert not still_running(children)


def test_ctrl_c_leaves_no_process_behind() -> None:
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True) as run:
        try:
            assert run.stdout is not None
            for line in run.stdout:
                if "starting a rollout worker" in line:
                    break
            children = psutil.Process(run.pid).children(recursive=True)
            assert len(children) >= 3
            run.send_signal(signal.SIGINT)
            rest = run.communicate(timeout=30)[0]
        finally:
            run.kill()
    assert run.returncode == 130
    assert "no process is left behind" in rest
    assert not still_running(children)


@pytest.mark.parametrize("words", [["--steps", "0"], ["--steps", "x"], ["--seeds"]])
def test_wrong_options_are_told(words: list[str]) -> None:
    told = subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert told.returncode == 2
    assert "usage: python -m examples.rollouts" in told.stderr


def test_a_run_counts_what_its_workers_did() -> None:
    run = Run(seed=0, curve=[(0, 0.4), (5, 0.6), (10, 0.5)])
    run.count([batch(), batch(fetched=50)])
    run.count([batch()])
    assert (run.steps, run.rollouts, run.tokens, run.weights_moved) == (2, 18, 54, 250)
    assert (run.before, run.after, run.rose) == (0.4, 0.5, True)
    run.curve.append((15, 0.4))
    assert not run.rose


def test_the_plot_holds_every_seed(tmp_path: Path) -> None:
    path = tmp_path / "two.png"
    draw([Run(0, [(0, 0.4), (5, 0.6)]), Run(1, [(0, 0.4), (5, 0.7)])], path)
    assert png_size(path) == (768, 480)


class FakeActor:
    """Answers at once, or fails."""

    def __init__(self, outcome: object) -> None:
        self.outcome = outcome
        method = SimpleNamespace(remote=lambda *_: self.outcome)
        self.sample = self.whoami = method


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """Two members; refs are their own values."""

    def get(ref: Any, timeout: float | None = None) -> Any:
        if isinstance(ref, Exception):
            raise ref
        return ref

    monkeypatch.setattr(lattica, "get", get)
    monkeypatch.setattr(lattica, "wait", lambda refs, timeout: (refs, []))
    fleet = object.__new__(Fleet)
    fleet._settings = Settings()
    fleet.members = [Member(name, FakeActor(batch()), pid=9) for name in ("one", "two")]  # type: ignore[arg-type]
    return fleet


def test_who_is_lost_is_left_out_until_it_is_back(fleet: Fleet) -> None:
    weights: Any = None
    one: Any = fleet.members[0].actor
    one.outcome = ActorUnavailableError("killed")
    harvest = fleet.gather(fleet.ask(weights, [1, 2]))
    assert harvest.lost == ["one"]
    assert len(harvest.batches) == 1
    assert [member.name for member, _ in fleet.ask(weights, [1, 2])] == ["two"]
    assert fleet.welcome() == [], "it fell again on the way"
    fleet.members[0].back = ("one", 10)  # type: ignore[assignment]
    [back] = fleet.welcome()
    assert (back.name, back.pid) == ("one", 10)
    assert back.seconds >= 0
    one.outcome = batch()
    assert len(fleet.gather(fleet.ask(weights, [1, 2])).batches) == 2
    assert fleet.welcome() == []
