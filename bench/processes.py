"""Other processes of a measurement: started, heard, and always ended."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

START_TIMEOUT = 60.0  # seconds
STOP_TIMEOUT = 10.0
MAX_LINE = 1 << 20


class Other:
    """A running `python -m MODULE …` and the lines it prints."""

    def __init__(self, process: anyio.abc.Process) -> None:
        self._process = process
        assert process.stdout is not None
        self._lines = BufferedByteReceiveStream(process.stdout)

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; one that has ended does not mind."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def line(self, timeout: float = START_TIMEOUT) -> str:
        """The next line."""
        with anyio.fail_after(timeout):
            return (await self._lines.receive_until(b"\n", MAX_LINE)).decode()

    async def say(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        await self._process.stdin.send(line.encode() + b"\n")


@contextlib.asynccontextmanager
async def other(*words: str) -> AsyncIterator[Other]:
    """Run `python -m WORDS` until the context ends."""
    process = await anyio.open_process(
        [sys.executable, "-m", *words], stdin=subprocess.PIPE, stderr=None
    )
    try:
        yield Other(process)
    finally:
        with anyio.CancelScope(shield=True):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with anyio.move_on_after(STOP_TIMEOUT):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
