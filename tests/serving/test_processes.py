"""Real processes over real sockets: weights by blocks, a ring, `kill -9`, the same text."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.serving.test_gateway import MESSAGES, expected

START = 60.0  # seconds; importing torch several times at once on a slow machine


class Process:
    """One `lattica` command whose JSON lines are read as events."""

    def __init__(self, *words: str, home: Path) -> None:
        self.log = (home.parent / f"{home.name}.log").open("w")
        self.child = subprocess.Popen(
            [sys.executable, "-m", "lattica", *words, "--json", "--home", str(home)],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.log_path = Path(self.log.name)
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self._events.put(json.loads(line))
        self._events.put({"event": "ended"})

    def wait_for(self, name: str) -> dict[str, Any]:
        """The next event of that name."""
        deadline = time.monotonic() + START
        while True:
            event = self._events.get(timeout=max(0.1, deadline - time.monotonic()))
            if event["event"] == name:
                return event
            assert event["event"] != "ended", self.log_path.read_text()

    def stop(self) -> None:
        """End it in order; by force if it does not."""
        self.child.terminate()
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        assert self.child.stdout is not None
        self.child.stdout.close()
        self.log.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Starts processes that end with the test."""
    running: list[Process] = []

    def begin(name: str, *words: str) -> Process:
        process = Process(*words, "--name", name, home=tmp_path / name)
        running.append(process)
        return process

    yield begin
    for process in reversed(running):
        process.stop()


@pytest.mark.slow
def test_a_stage_is_killed_in_mid_sentence(start: Any, chat: Path) -> None:
    first = start("ann", "serve", str(chat), "--layers", "0:2", "--listen", "127.0.0.1:0")
    ticket = first.wait_for("up")["ticket"]
    first.wait_for("serving")
    join = ("--ticket", ticket, "--listen", "127.0.0.1:0")
    middle = start("bob", "serve", "tiny-chat", "--layers", "2:4", *join)
    last = start("cat", "serve", "tiny-chat", "--layers", "4:6", *join)
    standby = start("dan", "serve", "tiny-chat", "--layers", "standby", *join)
    gateway = start("gateway", "gateway", "--port", "0", *join)
    for process in (middle, last):
        process.wait_for("serving")
        assert sum(process.wait_for("fetched")["bytes_by_provider"].values()) > 0
    standby.wait_for("standby")
    client = openai.OpenAI(
        base_url=gateway.wait_for("gateway")["url"], api_key="none", max_retries=0
    )
    with client:
        stream = client.chat.completions.create(
            model="tiny-chat", messages=MESSAGES, temperature=0, max_tokens=100, stream=True
        )
        text, story = "", {}
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            story = (chunk.model_extra or {}).get("lattica", story)
            if len(text) >= 3 and middle.child.poll() is None:
                os.kill(middle.child.pid, signal.SIGKILL)
                middle.child.wait()
    assert text == expected(chat, 100)
    assert story["stages"] == ["ann", "dan", "cat"]
    assert story["replaced"][0]["lost"] == "bob"
    assert story["replaced"][0]["gap_ms"] < 10_000
    assert standby.wait_for("serving")["span"] == "2:4"
