"""A worker as its host sees it: calls go in, outcomes come out, and it may die at any time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import signal
import socket
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.abc
import anyio.to_thread

from lattica.actors import pipe_messages as pm
from lattica.actors.forkserver_client import Child, Forker
from lattica.actors.messages import Failure, Outcome
from lattica.actors.pipe import FrameDecoder, FrameEncoder
from lattica.actors.pipe_server import CoreServer
from lattica.actors.pipe_socket import PipeSocket
from lattica.actors.worker_calls import FUNCTIONS
from lattica.actors.worker_log import WorkerLog
from lattica.errors import ActorsError, FrameError
from lattica.rpc.buffers import Buffer

_LAST_WORDS = 0.5  # seconds for what a dead worker has sent to arrive
_WORDS = 3  # lines of its output told with its death
_SOCKET_BUFFER = 1024 * 1024


class WorkerLostError(ActorsError):
    """The worker ended; the message says why."""


class Sink(Protocol):
    """Who wants a call's outcome."""

    def done(self, outcomes: tuple[Outcome, ...]) -> bool:
        """All outcomes; False: they are not what was asked for."""
        ...

    def item(self, outcome: Outcome) -> bool:
        """A stream's next item; False: none was due."""
        ...

    def end(self) -> None:
        """A stream's end."""
        ...

    def lost(self, cause: str, *, is_first: bool) -> None:
        """The worker ended first; `is_first`: no earlier call was unfinished."""
        ...


class FutureSink:
    """Outcomes as a future."""

    def __init__(self, returns: int) -> None:
        self._returns = returns
        self.future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()

    def done(self, outcomes: tuple[Outcome, ...]) -> bool:
        if len(outcomes) != self._returns:
            return False
        if not self.future.done():
            self.future.set_result(list(outcomes))
        return True

    def item(self, outcome: Outcome) -> bool:
        return False

    def end(self) -> None:
        self.done(())

    def lost(self, cause: str, *, is_first: bool) -> None:
        if not self.future.done():
            self.future.set_exception(WorkerLostError(cause))
            self.future.exception()  # whoever asked may have gone


class StreamSink:
    """Items in order, no more than a window of them at a time."""

    def __init__(self, window: int, credit: Callable[[int], None]) -> None:
        """`credit(n)` lets the worker send `n` more."""
        self._window = window
        self._credit = credit
        self._items: deque[Outcome] = deque()
        self._taken = 0
        self._changed = asyncio.Event()
        self.is_ended = False
        self.cause: str | None = None  # why the worker ended, if it did

    def done(self, outcomes: tuple[Outcome, ...]) -> bool:
        return False

    def item(self, outcome: Outcome) -> bool:
        self._items.append(outcome)
        self._changed.set()
        return len(self._items) <= self._window + 1  # a failure needs no credit

    def end(self) -> None:
        self.is_ended = True
        self._changed.set()

    def lost(self, cause: str, *, is_first: bool) -> None:
        self.cause = cause
        self.end()

    async def next(self) -> Outcome | None:
        """The next item; None past the end."""
        while not self._items:
            if self.is_ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        item = self._items.popleft()
        self._taken += 1
        if not self.is_ended and self._taken >= max(1, self._window // 2):
            self._credit(self._taken)
            self._taken = 0
        return item

    async def ended(self) -> None:
        """Wait for the end, letting items go."""
        while not self.is_ended:
            self._items.clear()
            self._changed.clear()
            await self._changed.wait()


class WorkerProcess:
    """One worker. Made by `start_worker`; ends with the task group that it was made with."""

    def __init__(
        self, forker: Forker, log: WorkerLog, config_frame: int, counters: Counter[str]
    ) -> None:
        self._forker = forker
        self.log = log
        self._max_frame = config_frame
        self._counters = counters
        self._encoder = FrameEncoder(config_frame)
        self._pipe: PipeSocket | None = None
        self._server: CoreServer | None = None
        self._child: Child | None = None
        self._numbers = itertools.count(1)
        self._calls: dict[int, Sink] = {}
        self._functions: OrderedDict[bytes, None] = OrderedDict()
        self._created: asyncio.Future[pm.Created] | None = None
        self._blame = ""
        self._is_ending = False  # no call may begin any more
        self.ready = asyncio.Event()
        self.dead = asyncio.Event()
        self.cause = ""  # why it ended
        self.leaving = ""  # user code asked to exit, for this reason
        self.on_death: Callable[[], None] | None = None

    @property
    def pid(self) -> int:
        """The process id; 0 before the fork."""
        return self._child.pid if self._child is not None else 0

    def set_idle_listener(self, listener: Callable[[bool], None] | None) -> None:
        """Have `listener` told when user code begins to wait for other results, and ends."""
        if self._server is not None:
            self._server.on_idle = listener

    @property
    def is_alive(self) -> bool:
        """Whether calls can still be made."""
        if self._pipe is None or self._pipe.ended.is_set():
            return False
        return not (self._is_ending or self.dead.is_set())

    # ------------------------------------------------------------------- calls

    def next_call(self) -> int:
        """A number for a call."""
        return next(self._numbers)

    def begin(self, message: pm.Run | pm.Call, sink: Sink) -> None:
        """Send a call; its outcome goes to `sink`.

        Raises:
            FrameError: it is too large to be sent.
            WorkerLostError: the worker has ended.
        """
        if not self.is_alive:
            raise WorkerLostError(self.cause or "was killed")
        self._send(message)
        self._calls[message.call] = sink

    def known_function(self, function_hash: bytes, function: Buffer) -> Buffer | None:
        """`function` if the worker does not have it; to be sent with the next call, in order."""
        known = function_hash in self._functions
        self._functions[function_hash] = None
        self._functions.move_to_end(function_hash)
        if len(self._functions) > FUNCTIONS:
            self._functions.popitem(last=False)
        return None if known else function

    async def create(self, message: pm.Create) -> pm.Created:
        """Construct the actor.

        Raises:
            WorkerLostError, FrameError: as in `begin`.
        """
        if not self.is_alive:
            raise WorkerLostError(self.cause or "was killed")
        self._created = asyncio.get_running_loop().create_future()
        self._send(message)
        return await self._created

    def stop(self, call: int) -> None:
        """Interrupt a call."""
        if call in self._calls and self.is_alive:
            self._send(pm.Stop(call))

    def credit(self, call: int, items: int) -> None:
        """Let a stream go on."""
        if call in self._calls and self.is_alive:
            self._send(pm.Credit(call, items))

    def kill(self, signum: signal.Signals = signal.SIGKILL) -> None:
        """Signal the worker and its process group."""
        self._is_ending = self._is_ending or signum == signal.SIGKILL
        if self._child is not None:
            self._forker.signal(self._child, signum)

    def _send(self, message: Any) -> None:
        assert self._pipe is not None
        self._pipe.write(self._encoder.encode(message))

    # ------------------------------------------------------------------- events

    def _on_message(self, message: Any) -> None:
        if isinstance(message, pm.Done):
            self._on_outcomes(message)
        elif isinstance(message, pm.Item):
            sink = self._calls.get(message.call)
            if sink is None or not sink.item(message.outcome):
                raise FrameError("an item that was not due")
        elif isinstance(message, pm.End):
            if (sink := self._calls.pop(message.call, None)) is not None:
                sink.end()
        elif isinstance(message, pm.Created):
            if self._created is None or self._created.done():
                raise FrameError("a creation that was not asked for")
            self._created.set_result(message)
        elif isinstance(message, pm.Ready):
            self.ready.set()
        elif isinstance(message, pm.Leaving):
            self.leaving = message.reason[:1024]
        elif self._server is not None:
            self._server.handle(message)

    def _on_outcomes(self, message: pm.Done) -> None:
        sink = self._calls.pop(message.call, None)
        if sink is None:
            self._counters["dropped:outcome"] += 1
        elif not sink.done(message.outcomes):
            self._calls[message.call] = sink
            raise FrameError("outcomes that were not asked for")

    def _on_violation(self, error: FrameError) -> None:
        self._counters["bad_frame"] += 1
        self._blame = f"broke the protocol with its host ({error})"
        self.kill()

    async def supervise(self) -> None:
        """Wait for the process's end, and tell everyone who waits for something of it."""
        assert self._child is not None
        assert self._pipe is not None
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._kill_when_closed)
                await self._child.exited.wait()
                self._is_ending = True  # what it said last must not set off new calls to it
                tasks.cancel_scope.cancel()
            with anyio.move_on_after(_LAST_WORDS):
                await self._pipe.ended.wait()
        finally:
            self._bury()
        await anyio.to_thread.run_sync(_remove, self.log.directory)

    async def _kill_when_closed(self) -> None:
        assert self._pipe is not None
        await self._pipe.ended.wait()
        await anyio.sleep(_LAST_WORDS)
        self._blame = self._blame or "closed its pipe"
        self.kill()

    def _bury(self) -> None:
        assert self._child is not None
        assert self._pipe is not None
        self._pipe.drain()
        self._pipe.close()
        self.log.close()
        self.cause = self.leaving or self._blame or self._child.cause or "was ended with its host"
        if self._child.is_own_doing and not self.leaving and any(self.log.tail):
            self.cause += "; its last words: " + " | ".join(list(self.log.tail)[-_WORDS:])
        self.dead.set()
        self.ready.set()
        if self._server is not None:
            self._server.close()
        if self._created is not None and not self._created.done():
            self._created.set_exception(WorkerLostError(self.cause))
            self._created.exception()
        calls, self._calls = self._calls, {}
        for index, sink in enumerate(calls.values()):
            sink.lost(self.cause, is_first=index == 0)
        if self.on_death is not None:
            self.on_death()


async def start_worker(
    forker: Forker,
    *,
    setup: pm.Setup,
    directory: Path,
    environment: dict[str, str],
    memory: int,
    threads: int,
    log: WorkerLog,
    serve: Callable[[Callable[[Any], None]], CoreServer],
    tasks: anyio.abc.TaskGroup,
    counters: Counter[str],
    timeout: float,
) -> WorkerProcess:
    """Fork a worker and wait until it is ready.

    Raises:
        ActorsError: it did not start within `timeout` seconds.
    """
    worker = WorkerProcess(forker, log, setup.max_frame, counters)
    log.directory = directory
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
            with anyio.fail_after(timeout):
                worker._child = await forker.spawn(
                    directory=directory,
                    environment=environment,
                    memory=memory,
                    threads=threads,
                    fds=(theirs.fileno(), log.write_fd),
                )
        log.close_write_end()
        worker._pipe = PipeSocket(
            ours,
            FrameDecoder(pm.ToHost, setup.max_frame),
            worker._on_message,
            worker._on_violation,
        )
    except BaseException as error:
        ours.close()
        log.close()
        worker.kill()
        if isinstance(error, TimeoutError):
            raise ActorsError(f"no worker could be forked within {timeout:g} s") from None
        raise
    worker._server = serve(worker._send)
    tasks.start_soon(worker.supervise)
    worker._send(setup)
    try:
        with anyio.fail_after(timeout):
            await worker.ready.wait()
    except BaseException as error:
        worker.kill()
        if isinstance(error, TimeoutError):
            raise ActorsError(f"worker {worker.pid} was not ready within {timeout:g} s") from None
        raise
    if not worker.is_alive:
        raise WorkerLostError(f"the worker {worker.cause} while it started")
    return worker


async def stream_items(sink: StreamSink) -> AsyncIterator[Outcome]:
    """The items of a sink."""
    while (item := await sink.next()) is not None:
        yield item


def _remove(directory: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(directory, ignore_errors=True)


__all__ = [
    "Failure",
    "FutureSink",
    "Sink",
    "StreamSink",
    "WorkerLostError",
    "WorkerProcess",
    "start_worker",
    "stream_items",
]
