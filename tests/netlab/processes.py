"""Processes of the real lab, as tests see them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

ROOT = Path(__file__).parents[2]


class LabError(RuntimeError):
    """The lab could not do what it was asked."""


class Keeper(Protocol):
    """The part of `Lab` that processes need."""

    processes: list[LabProcess]

    async def ask(self, what: str, *, fds: Sequence[int] = (), **arguments: Any) -> Any: ...

    def exit_of(self, pid: int) -> asyncio.Future[int]: ...


class LabProcess:
    """A process in the lab. It leads a group of its own, which signals reach as a whole."""

    def __init__(self, lab: Keeper, pid: int) -> None:
        self._lab = lab
        self.pid = pid  # in the lab's process namespace
        self._exit = lab.exit_of(pid)
        self.stdin: asyncio.StreamWriter
        self.stdout: asyncio.StreamReader
        self.stderr: asyncio.StreamReader
        self._writers: list[asyncio.StreamWriter] = []

    @classmethod
    async def start(
        cls,
        lab: Keeper,
        what: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None,
        cwd: str | Path,
        **where: Any,
    ) -> Self:
        """See `LabHost.run`."""
        ends: list[socket.socket] = []
        theirs: list[int] = []
        try:
            for _ in range(3):
                mine, other = socket.socketpair()
                ends.append(mine)
                theirs.append(other.detach())
            pid = await lab.ask(
                what,
                fds=theirs,
                argv=list(argv),
                env=None if env is None else dict(env),
                cwd=str(cwd),
                **where,
            )
        except BaseException:
            for end in ends:
                end.close()
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        process = cls(lab, pid)
        _, process.stdin = await asyncio.open_connection(sock=ends[0])
        process.stdout, out = await asyncio.open_connection(sock=ends[1])
        process.stderr, err = await asyncio.open_connection(sock=ends[2])
        process._writers += (process.stdin, out, err)
        lab.processes.append(process)
        return process

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._exit.result() if self._exit.done() else None

    async def send_signal(self, number: int) -> None:
        """Signal the process and those that it has started."""
        await self._lab.ask("signal", pid=self.pid, number=number)

    async def kill(self) -> None:
        await self.send_signal(signal.SIGKILL)

    async def terminate(self) -> None:
        await self.send_signal(signal.SIGTERM)

    async def wait(self, timeout: float = 30.0) -> int:
        """The exit code.

        Raises:
            TimeoutError: it goes on.
        """
        code = await asyncio.wait_for(asyncio.shield(self._exit), timeout)
        self.close()
        return code

    def close(self) -> None:
        """Close the pipes."""
        for writer in self._writers:
            writer.close()

    async def output(self, timeout: float = 30.0) -> str:
        """All of its standard output, once it has ended well.

        Raises:
            LabError: it ended otherwise; the message has its standard error.
            TimeoutError: it goes on.
        """
        out, err = await asyncio.wait_for(
            asyncio.gather(self.stdout.read(), self.stderr.read()), timeout
        )
        code = await self.wait(timeout)
        if code != 0:
            raise LabError(f"exit code {code}: {err.decode(errors='replace')}")
        return out.decode()
