"""Real `lattica` processes for tests; each test's fixture ends those it started."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START_TIMEOUT = 30.0


class Daemon:
    """A running `lattica up` or `join`, and what it said when it was up."""

    def __init__(self, home: Path, words: tuple[str, ...]) -> None:
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lattica", *words, "--home", str(home), "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # ends with the process at the latest
        self.up: dict[str, Any] = json.loads(line) if line else {}

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next `event` that it prints."""
        assert self.process.stdout is not None
        for line in self.process.stdout:  # ends with the process at the latest
            said: dict[str, Any] = json.loads(line)
            if said["event"] == event:
                return said
        raise AssertionError(f"it ended before it was {event!r}: {self.failure()}")

    def failure(self) -> str:
        """What it said on standard error; it has ended by itself."""
        return self.process.communicate(timeout=START_TIMEOUT)[1]


class Daemons:
    """Starts daemons; ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._all: list[Daemon] = []

    def start(self, name: str, *words: str, listen: str = "127.0.0.1:0", home: str = "") -> Daemon:
        """`lattica WORDS` with a home of its own, or the one of another name."""
        command = (*words, "--name", name, "--listen", listen, "--cpus", "1")
        daemon = Daemon(self.folder / (home or name), command)
        self._all.append(daemon)
        return daemon

    def stop(self) -> None:
        """End every one."""
        for daemon in self._all:
            daemon.process.terminate()
        for daemon in self._all:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.process.communicate(timeout=10)
            daemon.process.kill()
            daemon.process.wait()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Daemons]:
    """Daemons for as long as the context lasts."""
    daemons = Daemons(folder)
    try:
        yield daemons
    finally:
        daemons.stop()


def lattica(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "lattica", *words, "--home", str(home)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
