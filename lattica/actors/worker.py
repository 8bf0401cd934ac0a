"""A worker process: it runs user code on its main thread, and talks to its host on another.

Forked by the fork server, so nothing here starts a thread or reads a file at import.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import socket
import sys
import threading
from typing import Any, NoReturn

from lattica.actors import pipe_messages as pm
from lattica.actors.context import Context, set_current
from lattica.actors.pipe import FrameDecoder, FrameEncoder
from lattica.actors.pipe_core import PipeCore
from lattica.actors.worker_calls import Runner
from lattica.errors import FrameError

_SWITCH_INTERVAL = 0.001  # seconds; the pipe's thread must not wait long for busy user code
_SMALL = 64 * 1024  # bytes; smaller frames are joined and written at once


class HostPipe:
    """The worker's end of the pipe. Any thread sends; the pipe's own thread receives."""

    def __init__(self, sock: socket.socket, max_frame: int) -> None:
        self._sock = sock
        self._encoder = FrameEncoder(max_frame)
        self._decoder: FrameDecoder[pm.ToWorker] = FrameDecoder(pm.ToWorker, max_frame)
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """For the event loop."""
        return self._sock.fileno()

    def send(self, message: Any) -> None:
        """Write one message. Blocks while the host has no room; it always reads.

        An outcome has left this process when this returns, so a call that is begun
        afterwards cannot be confused with the one before, whatever ends the process.

        Raises:
            FrameError: the message is too large.
        """
        with self._lock:
            parts = self._encoder.encode(message)
            try:
                if len(parts) > 1 and sum(map(len, parts)) <= _SMALL:
                    parts = [b"".join(parts)]
                for part in parts:
                    self._sock.sendall(part)
            except OSError:
                end_process()

    def receive(self) -> list[pm.ToWorker]:
        """The messages that have arrived; ends the process with the host."""
        try:
            count = self._sock.recv_into(self._decoder.get_buffer(), 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError:
            count = 0
        if count == 0:
            end_process()
        return self._decoder.received(count)


class PipeThread:
    """Receives from the host, and is the home of this process's core."""

    def __init__(self, pipe: HostPipe, setup: pm.Setup, runner: Runner) -> None:
        self._pipe = pipe
        self._runner = runner
        self._loop = asyncio.new_event_loop()
        self._core = PipeCore(setup.peer, pipe.send)
        self.context = Context(self._core, self._loop, kind="worker", name=setup.peer_name)
        self._loop.add_reader(pipe.fileno(), self._on_readable)
        self._thread = threading.Thread(target=self._loop.run_forever, name="pipe", daemon=True)

    def start(self) -> None:
        """Begin to receive."""
        self._thread.start()

    def _on_readable(self) -> None:
        try:
            for message in self._pipe.receive():
                self._handle(message)
        except FrameError as error:
            print(f"lattica worker: {error}", file=sys.stderr)
            end_process()

    def _handle(self, message: pm.ToWorker) -> None:
        if isinstance(message, (pm.Run, pm.Create, pm.Call)):
            self._runner.enqueue(message)
        elif isinstance(message, pm.Stop):
            self._runner.stop(message.call)
        elif isinstance(message, pm.Credit):
            self._runner.credit(message.call, message.items)
        elif not isinstance(message, pm.Setup):
            self._core.answer(message)


def main(sock: socket.socket) -> None:
    """Serve one host until it wants no more; the caller ends the process afterwards."""
    sys.setswitchinterval(_SWITCH_INTERVAL)
    faulthandler.enable()  # a crash in native code leaves its stack in the log
    setup, pipe = _set_up(sock)
    runner = Runner(pipe.send, setup.peer, setup.peer_name)
    thread = PipeThread(pipe, setup, runner)
    set_current(thread.context)
    signal.signal(signal.SIGTERM, runner.on_terminate)
    signal.signal(signal.SIGUSR1, runner.on_interrupt)
    thread.start()
    pipe.send(pm.Ready())
    runner.serve()


def _set_up(sock: socket.socket) -> tuple[pm.Setup, HostPipe]:
    """Read the first message, which says how large the others may be."""
    first: FrameDecoder[pm.ToWorker] = FrameDecoder(pm.ToWorker, _SMALL)
    # Byte for byte, so that nothing of the second message is taken along.
    while True:
        count = sock.recv_into(first.get_buffer()[:1])
        if count == 0:
            end_process()
        for message in first.received(count):
            if not isinstance(message, pm.Setup):
                raise FrameError(f"a {type(message).__name__} came before the set-up")
            return message, HostPipe(sock, message.max_frame)


def end_process() -> NoReturn:
    """The host is gone: end this process and all that it started in its group."""
    os.killpg(0, signal.SIGKILL)
    os._exit(1)
