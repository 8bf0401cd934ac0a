"""Real processes over real sockets: weights by blocks, a ring, `kill -9`, the same text."""

from __future__ import annotations

import argparse
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

import anyio
import anyio.to_thread
import openai
import pytest

from lattica.peer import Peer, PeerOptions
from serving.background import background
from serving.cli import gateway
from serving.http import bind
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
    for process in running:
        process.child.terminate()
    for process in running:
        process.stop()


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_stage_is_killed_in_mid_sentence(
    start: Any, chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ("--listen", "127.0.0.1:0")
    first = start("ann", "serve", str(chat), "--layers", "0:3", *here)
    ticket = (await anyio.to_thread.run_sync(first.wait_for, "up"))["ticket"]
    join = ("--ticket", ticket, *here)
    second = start("bob", "serve", "tiny-chat", "--layers", "3:6", *join)
    standby = start("cat", "serve", "tiny-chat", "--layers", "standby", *join)
    options = PeerOptions(home=tmp_path / "gateway", ticket=ticket, listen=here[1], name="gate")
    listener = bind("127.0.0.1", 0)
    args = argparse.Namespace(home=options.home, json=True)
    async with Peer.open(options) as peer, background() as tasks:
        tasks.start_soon(gateway, args, peer, listener)
        await anyio.to_thread.run_sync(first.wait_for, "serving")
        for process, state in ((second, "serving"), (standby, "standby")):
            await anyio.to_thread.run_sync(process.wait_for, state)
            fetched = await anyio.to_thread.run_sync(process.wait_for, "fetched")
            assert sum(fetched["bytes_by_provider"].values()) > 100_000
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            text, story = await read_and_kill(client, second)
    assert text == expected(chat, 100)
    assert story["stages"] == ["ann", "cat"]
    assert [lost["lost"] for lost in story["replaced"]] == ["bob"]
    assert story["replaced"][0]["gap_ms"] < 10_000
    assert f'"url":"{url}"' in capsys.readouterr().out
    took = await anyio.to_thread.run_sync(standby.wait_for, "serving")
    assert took["span"] == "3:6"


async def read_and_kill(client: openai.AsyncOpenAI, victim: Process) -> tuple[str, dict[str, Any]]:
    """The answer, while a stage dies after a few characters, and how it came about."""
    text, story = "", {}
    stream = await client.chat.completions.create(
        model="tiny-chat", messages=MESSAGES, temperature=0, max_tokens=100, stream=True
    )
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        story = (chunk.model_extra or {}).get("lattica", story)
        if len(text) >= 3 and victim.child.poll() is None:
            os.kill(victim.child.pid, signal.SIGKILL)
            victim.child.wait()
    return text, story
