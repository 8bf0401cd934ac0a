"""Four machines' worth of peers: processes of their own, each with its own home."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

START_TIMEOUT = 45.0  # seconds: four interpreters load torch on two cores
STOP_TIMEOUT = 5.0


class MachineError(Exception):
    """A peer did not start, or ended by itself."""


class Machine:
    """One `lattica` process, in a process group of its own."""

    def __init__(
        self, name: str, folder: Path, words: Sequence[str], others: Sequence[Machine] = ()
    ) -> None:
        """Start `lattica WORDS --home FOLDER/name --name NAME --json`.

        `others`: those that it may need; which of them have ended is told if it fails.
        """
        self._others = others
        self.name = name
        self.home = folder / name
        self.log = folder / f"{name}.log"
        command = [
            *(sys.executable, "-m", "lattica", *words),
            *("--home", str(self.home), "--name", name, "--json"),
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        self._events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, event: str, timeout: float = START_TIMEOUT) -> dict[str, Any]:
        """The first `event` that the process printed.

        Raises:
            MachineError: it ended, or `timeout` seconds passed.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for seen in self._events:
                    if seen.get("event") == event:
                        return seen
                left = deadline - time.monotonic()
                if self.process.poll() is not None and not self._reader.is_alive():
                    raise MachineError("; ".join(self._ends()))
                if left <= 0:
                    raise MachineError(f"{self.name} was not {event!r} in {timeout:.0f} s")
                self._changed.wait(min(left, 0.5))

    def _ends(self) -> list[str]:
        """How it has ended, and which others have."""
        return [
            f"{each.name} ended with status {each.process.returncode}: {each.last_words()}"
            for each in (self, *self._others)
            if each.process.poll() is not None
        ]

    def latest(self, *events: str) -> dict[str, Any]:
        """The last of these events that the process printed; empty if none was."""
        with self._changed:
            seen = [event for event in self._events if event.get("event") in events]
        return seen[-1] if seen else {}

    def last_words(self) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").strip().splitlines()
            return lines[-1] if lines else "(nothing in its log)"
        return "(no log)"

    def ask(self, *words: str) -> Any:
        """What `lattica WORDS --json` answers for this machine."""
        answer = subprocess.run(
            [sys.executable, "-m", "lattica", *words, "--home", str(self.home), "--json"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if answer.returncode != 0:
            raise MachineError(f"lattica {' '.join(words)} on {self.name}: {answer.stderr.strip()}")
        return json.loads(answer.stdout)

    def kill(self) -> None:
        """Pull the plug: SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def terminate(self) -> None:
        """Ask it to stop."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError), self._changed:
                event = json.loads(line)
                if isinstance(event, dict):
                    self._events.append(event)
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Let Ctrl-C wait until the block is done: what it starts must not be forgotten."""
    came: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    for number in came:
        signal.raise_signal(number)


class Machines:
    """All processes of one demo. Leaving the context ends every one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._all: list[Machine] = []

    def start(self, name: str, *words: str) -> Machine:
        """Start one; see `Machine`."""
        with held_back():
            machine = Machine(name, self.folder, words, tuple(self._all))
            self._all.append(machine)
        return machine

    def __iter__(self) -> Iterator[Machine]:
        return iter(self._all)

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *_: object) -> None:
        # A second Ctrl-C while stopping must not leave anything behind.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for machine in self._all:
                machine.terminate()
            deadline = time.monotonic() + STOP_TIMEOUT
            for machine in self._all:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    machine.process.wait(max(0.1, deadline - time.monotonic()))
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(machine.process.pid, signal.SIGKILL)
                machine.process.wait()
        finally:
            signal.signal(signal.SIGINT, previous)
