"""Processes for handlers that compute, each replaced when its call is given up."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from lattica.errors import HandlerDiedError
from lattica.rpc.admission import Limit
from lattica.rpc.context import CallContext, current_call, trace_id
from lattica.rpc.threads import Threads
from lattica.rpc.work import Work

STOP_TIMEOUT = 5.0  # seconds; a killed process is gone much sooner


class Processes:
    """Runs picklable functions, one at a time in each process.

    What crosses are functions by name and values of this process, which `pickle` packs
    here and unpacks in a child of ours, and their results on the way back: nothing that a
    peer sent is unpickled, since arguments have been decoded by type before.
    """

    def __init__(self, size: int, threads: Threads) -> None:
        """A thread of `threads` waits for each running process."""
        self.limit = Limit(size)
        self._threads = threads
        self._idle: list[_Process] = []
        self._all: list[_Process] = []
        self._closed = False

    def run(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Work:
        """See `Pool`. The process of a function that nobody waits for is killed."""
        process = self._idle.pop() if self._idle else self._new()
        call = current_call.get(None)
        context = call.context if call is not None else None
        job = (_run, function, tuple(args), dict(kwargs), context, trace_id.get())
        done = self._threads.run(process.call, job, {}).done
        done.add_done_callback(lambda _: self._finished(process))
        return Work(done, process.kill)

    async def close(self) -> None:
        """Kill all of them."""
        self._closed = True
        for process in self._all:
            process.is_over = True
            process.kill()
        ends = [self._threads.run(process.end, (), {}).done for process in self._all]
        if ends:
            await asyncio.wait(ends, timeout=STOP_TIMEOUT)

    def _new(self) -> _Process:
        process = _Process()
        self._all.append(process)
        return process

    def _finished(self, process: _Process) -> None:
        if self._closed:
            return
        if process.is_running:
            self._idle.append(process)
        else:  # its successor has started by the time it is needed
            done = self._threads.run(process.restart, (), {}).done
            done.add_done_callback(lambda _: self._idle.append(process))


class _Process:
    """One process, and the next in its place once it has ended. Methods are for threads."""

    def __init__(self) -> None:
        # One executor for each process: a broken one fails only its own call.
        self._executor: concurrent.futures.ProcessPoolExecutor | None = None
        self._pid: concurrent.futures.Future[int] | None = None
        self.is_killed = False
        self.is_over = False  # no process follows

    @property
    def is_running(self) -> bool:
        """Whether it can take the next call."""
        return self._executor is not None and not self.is_killed

    def call(self, *job: Any) -> Any:
        """Run a job, and wait for its outcome."""
        try:
            future = self.start().submit(*job)
        except BrokenProcessPool:  # it died in its sleep
            self.end()
            future = self.start().submit(*job)
        try:
            return future.result()
        except BrokenProcessPool:
            self.end()
            raise HandlerDiedError(
                "the process that ran the handler ended before it did: it crashed, was killed "
                "or ran out of memory; another one takes the next call, this one may have run"
            ) from None

    def start(self) -> concurrent.futures.ProcessPoolExecutor:
        """The process, which starts if there is none."""
        if self._executor is None:
            if self.is_over:
                raise HandlerDiedError("this peer is shutting down")
            self._executor = concurrent.futures.ProcessPoolExecutor(
                1, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare
            )
            self._pid = self._executor.submit(os.getpid)
            if self.is_killed:
                self._pid.add_done_callback(_kill)
        return self._executor

    def restart(self) -> None:
        """Another process in place of one that was killed, or died."""
        self.end()
        self.is_killed = self.is_over
        if not self.is_over:
            self.start()

    def end(self) -> None:
        """Wait for the end of a process that was killed, or died."""
        executor, self._executor, self._pid = self._executor, None, None
        if executor is not None:
            executor.shutdown()

    def kill(self) -> None:
        """End the process as soon as it has started. Called on the loop."""
        self.is_killed = True
        if (pid := self._pid) is not None:
            pid.add_done_callback(_kill)


def _kill(pid: concurrent.futures.Future[int]) -> None:
    with contextlib.suppress(BrokenProcessPool, ProcessLookupError):
        os.kill(pid.result(), signal.SIGKILL)


# ------------------------------------------------------------------ in the process


def _prepare() -> None:
    """End with the parent, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="lattica-parent", daemon=True).start()


def _run(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: CallContext | None,
    trace: bytes,
) -> Any:
    if context is not None:
        current_call.set(context)
    trace_id.set(trace)
    return function(*args, **kwargs)
