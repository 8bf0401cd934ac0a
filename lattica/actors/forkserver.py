"""The fork server: one thread, light modules loaded, a new worker in milliseconds.

A host starts it as a fresh interpreter that calls `main` with the arguments FD PARENT, so
the process with the event loop is never forked. It ends, with every worker and whatever they
started, when its host does: the socket closes at once even if the host was killed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import shutil
import signal
import socket
import sys
import time
import traceback
from typing import Any, NoReturn

from lattica.actors import limits, worker
from lattica.actors.forkserver_messages import Exited, Signal, Spawn, Spawned, Start, ToServer
from lattica.actors.forkserver_messages import receive as receive_message
from lattica.actors.forkserver_messages import send as send_message
from lattica.actors.worker_calls import flush

END_SECONDS = 1.0  # for killed workers to be gone


class ForkServer:
    """Forks, signals and reaps workers for one host."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._workers: dict[int, str] = {}  # pid -> directory
        self._directory = ""
        self._is_ending = False

    def serve(self) -> None:
        """Do what the host asks until it closes the socket."""
        woken, waker = socket.socketpair()
        woken.setblocking(False)
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_terminate)
        self._child_closes = (woken, waker)
        while not self._is_ending:
            ready, _, _ = select.select([self._sock, woken], [], [])
            if woken in ready:
                woken.recv(4096)
                self._reap(report=True)
            if self._sock in ready and not self._serve_one():
                return

    def end(self) -> None:
        """Kill every worker and its descendants, and remove their files."""
        deadline = time.monotonic() + END_SECONDS
        while True:
            for pid in {*self._workers, *limits.child_pids()}:
                _kill_group(pid)
            self._reap(report=False)
            if not self._workers and not limits.child_pids():
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _serve_one(self) -> bool:
        received = receive_message(self._sock, ToServer)
        if received is None:
            return False
        message, fds = received
        if isinstance(message, Spawn):
            self._spawn(message, fds)
        elif isinstance(message, Signal):
            if message.pid in self._workers:
                _signal_group(message.pid, message.signum)
        else:
            self._start(message)
        return True

    def _start(self, message: Start) -> None:
        self._directory = message.directory
        for name in message.preload:
            try:
                importlib.import_module(name)
            except Exception:  # noqa: BLE001 - workers that need it will say so themselves
                print(f"cannot preload {name}:\n{traceback.format_exc()}", file=sys.stderr)
        gc.collect()
        gc.freeze()  # what is shared stays shared: collections in children skip it

    def _spawn(self, message: Spawn, fds: list[int]) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            send_message(self._sock, Spawned(message.number, 0, str(error)))
        else:
            if pid == 0:
                self._be_worker(message, fds, parent)
            self._workers[pid] = message.directory
            send_message(self._sock, Spawned(message.number, pid))
        for fd in fds:
            os.close(fd)

    def _be_worker(self, message: Spawn, fds: list[int], parent: int) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for signum in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(signum, signal.SIG_DFL)
            limits.die_with_parent(parent, signal.SIGKILL)
            for sock in (self._sock, *self._child_closes):
                sock.close()
            pipe_fd, log_fd = fds
            os.set_inheritable(pipe_fd, False)
            os.setsid()
            _become(message, log_fd)
            worker.main(socket.socket(fileno=pipe_fd))
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:  # noqa: BLE001 - the log is the only place left to tell
            traceback.print_exc()
        finally:
            flush()
            os._exit(code)

    def _reap(self, *, report: bool) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            directory = self._workers.pop(pid, None)
            if directory is None:
                continue  # a worker's orphan
            # What the worker has left behind: its group, and those who left that and
            # were adopted here.
            _kill_group(pid)
            for orphan in set(limits.child_pids()) - self._workers.keys():
                if limits.was_started_in(orphan, directory):
                    _kill_group(orphan)
            if report:
                send_message(self._sock, Exited(pid, status))

    def _on_terminate(self, signum: int, frame: Any) -> None:
        self._is_ending = True  # the host has ended; the wake-up descriptor ends the wait


def _become(message: Spawn, log_fd: int) -> None:
    """Turn a forked copy of the server into what the worker is to be."""
    os.makedirs(message.directory, mode=0o700, exist_ok=True)
    os.chdir(message.directory)
    os.environ.clear()
    os.environ.update(message.environment)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    limits.confine(message.memory)
    # Preloaded libraries have read their environment already, and drawn their seed.
    if (torch := sys.modules.get("torch")) is not None:
        torch.seed()
        if message.threads:
            torch.set_num_threads(message.threads)
    if (random := sys.modules.get("numpy.random")) is not None:
        random.seed()


def _signal_group(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        try:
            os.killpg(pid, signum)
        except ProcessLookupError:  # no group yet, or not its leader
            os.kill(pid, signum)


def _kill_group(pid: int) -> None:
    _signal_group(pid, signal.SIGKILL)


def main() -> None:
    """Run the server on the socket and for the parent that the arguments name."""
    fd, parent = int(sys.argv[1]), int(sys.argv[2])
    limits.die_with_parent(parent, signal.SIGTERM)
    limits.adopt_orphans()
    os.set_inheritable(fd, False)
    server = ForkServer(socket.socket(fileno=fd))
    try:
        server.serve()
    except (EOFError, OSError):
        pass  # the host is gone, or about to start another server
    finally:
        server.end()


if __name__ == "__main__":
    main()
