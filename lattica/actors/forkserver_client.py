"""The host's side of its fork server: starts it, again if it dies, and asks it for workers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from lattica.actors import forkserver_messages as fm
from lattica.errors import ActorsError

_SPAWNS = 16  # at once
_MAIN = "import sys; sys.path[:] = {path!r}; from lattica.actors.forkserver import main; main()"


class Child:
    """A forked worker, until it is reaped."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exited = asyncio.Event()
        self.cause = ""  # why it ended, for people
        self.is_own_doing = False  # it exited or crashed; nobody killed it

    def _end(self, cause: str, *, is_own_doing: bool = False) -> None:
        self.cause = cause
        self.is_own_doing = is_own_doing
        self.exited.set()


class Forker:
    """Workers on request. Used on one event loop only."""

    def __init__(
        self,
        *,
        directory: Path,
        log: Path,
        environment: Mapping[str, str],
        preload: tuple[str, ...] = (),
    ) -> None:
        """`directory` is removed when the server ends, even if this process was killed."""
        self._directory = directory
        self._log = log
        self._environment = dict(environment)
        self._preload = preload
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._messages = fm.Messages()
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Child]] = {}
        self._children: dict[int, Child] = {}
        self._slots = asyncio.Semaphore(_SPAWNS)
        self.restarts = -1  # of the server itself

    @property
    def pid(self) -> int:
        """The server's; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Start the server; returns before it is ready, requests wait for it."""
        ours, theirs = socket.socketpair()
        code = _MAIN.format(path=[os.path.abspath(entry) for entry in sys.path])
        with theirs, self._log.open("ab") as log:
            # From this thread: the kernel ends the server with the thread that started it.
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                env=self._environment,
                start_new_session=True,
            )
        self.restarts += 1
        self._messages = fm.Messages()
        self._sock = ours
        fm.send(ours, fm.Start(self._preload, str(self._directory)))
        ours.setblocking(False)
        asyncio.get_running_loop().add_reader(ours, self._on_readable)

    async def spawn(
        self,
        *,
        directory: Path,
        environment: Mapping[str, str],
        memory: int,
        threads: int,
        fds: tuple[int, int],
    ) -> Child:
        """Fork a worker. `fds`: its end of the pipe, and of its log.

        Raises:
            ActorsError: it could not be forked.
        """
        async with self._slots:
            if self._sock is None:
                self.start()
            assert self._sock is not None
            number = next(self._numbers)
            future: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
            self._asked[number] = future
            request = fm.Spawn(number, str(directory), dict(environment), memory, threads)
            try:
                fm.send(self._sock, request, fds)
            except OSError as error:
                del self._asked[number]
                raise ActorsError(f"the fork server takes no request: {error}") from None
            return await future

    def signal(self, child: Child, signum: signal.Signals) -> None:
        """Signal a worker and its group, if it has not ended."""
        if child.exited.is_set() or self._sock is None:
            return
        try:
            fm.send(self._sock, fm.Signal(child.pid, signum))
        except OSError:
            _kill_group(child.pid, signum)

    async def close(self) -> None:
        """End the server, and with it all that is left of its workers."""
        process = self._process
        self._disconnect("the host ended")
        if process is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_wait, process)

    def _on_readable(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            messages = self._messages.feed(data)
        except msgspec.DecodeError:
            data, messages = b"", []
        for message in messages:
            self._handle(message)
        if not data:
            self._on_death()

    def _handle(self, message: fm.FromServer) -> None:
        if isinstance(message, fm.Exited):
            child = self._children.pop(message.pid, None)
            if child is not None:
                code = os.waitstatus_to_exitcode(message.status)
                killed = code in (-signal.SIGKILL, -signal.SIGTERM)
                child._end(_describe(code), is_own_doing=code != 0 and not killed)
            return
        future = self._asked.pop(message.number, None)
        if not message.pid:
            if future is not None and not future.done():
                future.set_exception(ActorsError(f"cannot fork a worker: {message.reason}"))
            return
        child = self._children[message.pid] = Child(message.pid)
        if future is None or future.done():  # whoever asked has gone
            self.signal(child, signal.SIGKILL)
        else:
            future.set_result(child)

    def _on_death(self) -> None:
        process, children = self._process, list(self._children.values())
        self._disconnect("its fork server died")
        for child in children:
            _kill_group(child.pid, signal.SIGKILL)
        if process is not None:
            process.kill()
            process.wait()  # it has closed its socket, so it has ended or does so now

    def _disconnect(self, cause: str) -> None:
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
        self._sock = self._process = None
        children, self._children = self._children, {}
        for child in children.values():
            child._end(cause)
        asked, self._asked = self._asked, {}
        for future in asked.values():
            if not future.done():
                future.set_exception(ActorsError(f"no worker could be started: {cause}"))


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=3.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _kill_group(pid: int, signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signum)


def _describe(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
