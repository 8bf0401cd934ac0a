"""What a worker does with the calls that its host sends: one after another, or overlapping.

Tasks and ordinary actors run on the main thread, so that signals and libraries behave as
in a script. Actors with async methods have the main thread's event loop; those with
`max_concurrency` above one have as many threads.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import queue
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import msgspec

from lattica.actors import pipe_messages as pm
from lattica.actors.failures import pack_error
from lattica.actors.messages import Failure, Outcome
from lattica.actors.serialization import dumps, load_call, load_code
from lattica.actors.worker_interrupts import Interrupts, TaskInterrupt
from lattica.actors.worker_streams import AsyncWindow, ThreadWindow
from lattica.errors import FrameError, SerializationError
from lattica.identity.keys import PeerId

FUNCTIONS = 256  # kept loaded; the host keeps the same count, so neither need ask
ASYNC_CONCURRENCY = 1000  # calls at once of an async actor that does not say

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class Code:
    """A pickled function, unpickled when it is first called."""

    def __init__(self, message: pm.Run) -> None:
        assert message.function is not None
        self._pickle = message.function
        self._function: Callable[..., Any] | None = None

    def load(self) -> Callable[..., Any]:
        """The function itself."""
        if self._function is None:
            self._function = load_code(self._pickle)
        return self._function


class Job:
    """One call, and how its outcome is to be given."""

    def __init__(self, message: pm.Run | pm.Call, load: Callable[[], Callable[..., Any]]) -> None:
        self.message = message
        self.load = load
        self.call = message.call
        self.name = message.name if isinstance(message, pm.Run) else message.method
        self.window: ThreadWindow | AsyncWindow | None = None
        self.has_begun = False

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Unpickled."""
        return load_call(self.message.args, self.message.arg_values)


class Runner:
    """Runs calls. `serve` has the main thread; the pipe's thread tells it what to do."""

    def __init__(self, send: Callable[[Any], None], peer: PeerId, peer_name: str) -> None:
        self._send = send
        self._peer = peer
        self._peer_name = peer_name
        self._home = os.getcwd()
        self._inbox: queue.SimpleQueue[Job | pm.Create] = queue.SimpleQueue()
        self._place: Callable[[Job], Any] = self._inbox.put
        self._placing = threading.Lock()
        self._is_ending = False
        self._functions: OrderedDict[bytes, Code] = OrderedDict()
        self._jobs: dict[int, Job] = {}
        self._interrupts = Interrupts()
        self._actor: Any = None
        self._is_actor = False
        self._asyncio: asyncio.Runner | None = None

    # ------------------------------------------------------ on the pipe's thread

    def enqueue(self, message: pm.Run | pm.Create | pm.Call) -> None:
        """A call has arrived."""
        if isinstance(message, pm.Create):
            self._inbox.put(message)
            return
        if isinstance(message, pm.Run):
            job = Job(message, self._code(message).load)
        else:
            job = Job(message, lambda: getattr(self._actor, message.method))
        self._jobs[job.call] = job
        with self._placing:
            self._place(job)

    def stop(self, call: int) -> None:
        """Interrupt a call, or see to it that it does not begin."""
        if (job := self._jobs.get(call)) is not None:
            self._interrupts.request(call)
            if job.window is not None:
                job.window.close()

    def credit(self, call: int, items: int) -> None:
        """The consumer of a stream has taken some items."""
        if (job := self._jobs.get(call)) is not None and job.window is not None:
            job.window.add(items)

    def _code(self, message: pm.Run) -> Code:
        if message.function is not None:
            self._functions[message.function_hash] = Code(message)
        self._functions.move_to_end(message.function_hash)
        if len(self._functions) > FUNCTIONS:
            self._functions.popitem(last=False)
        return self._functions[message.function_hash]

    # ------------------------------------------------------- on the main thread

    def on_interrupt(self, signum: int, frame: Any) -> None:
        """The signal handler that `stop` has called on the main thread."""
        self._interrupts.check()

    def on_terminate(self, signum: int, frame: Any) -> None:
        """The signal handler that lets user code clean up before the process ends."""
        self._is_ending = True
        raise SystemExit(128 + signum)

    def serve(self) -> NoReturn:
        """Run calls until the process ends."""
        while True:
            message = self._inbox.get()
            if isinstance(message, pm.Create):
                self._create(message)
            else:
                self._perform(message)
                self._tidy()

    def _tidy(self) -> None:
        if not self._is_actor:
            os.chdir(self._home)

    def _create(self, message: pm.Create) -> None:
        self._is_actor = True
        try:
            cls = load_code(message.definition)
        except BaseException as error:  # noqa: BLE001 - importing user code may raise anything
            self._send(pm.Created(self._failure_of(error, message.name)))
            return
        if _is_async(cls):
            with asyncio.Runner() as runner:
                runner.run(self._serve_async(cls, message))
        if self._construct(cls, message, concurrent=message.max_concurrency > 1):
            if message.max_concurrency > 1:
                self._serve_threads(message.max_concurrency)
            self.serve()

    def _construct(self, cls: Any, message: pm.Create, *, concurrent: bool) -> bool:
        try:
            args, kwargs = load_call(message.args, message.arg_values)
            self._actor = cls(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - user code may raise anything
            self._send(pm.Created(self._failure_of(error, message.name)))
            return False
        self._send(pm.Created(concurrent=concurrent))
        return True

    def _serve_threads(self, count: int) -> NoReturn:
        pool = ThreadPoolExecutor(count, thread_name_prefix="actor")
        while True:
            job = self._inbox.get()
            assert isinstance(job, Job)
            pool.submit(self._perform, job)

    async def _serve_async(self, cls: Any, message: pm.Create) -> None:
        loop = asyncio.get_running_loop()
        limit = asyncio.Semaphore(
            message.max_concurrency if message.max_concurrency > 1 else ASYNC_CONCURRENCY
        )
        running: set[asyncio.Task[None]] = set()

        def begin(job: Job) -> None:
            task = loop.create_task(self._perform_async(job, limit))
            running.add(task)
            task.add_done_callback(running.discard)

        if not self._construct(cls, message, concurrent=True):
            await asyncio.Event().wait()  # the host ends the process
        with self._placing:
            self._place = lambda job: loop.call_soon_threadsafe(begin, job)
            while not self._inbox.empty():  # what arrived during the construction
                job = self._inbox.get_nowait()
                assert isinstance(job, Job)
                begin(job)
        await asyncio.Event().wait()

    # ------------------------------------------------------------ one call, sync

    def _perform(self, job: Job) -> None:
        """Run one call on this thread and send its outcome."""
        if job.message.window:
            job.window = ThreadWindow(job.message.window)
        failure: Failure | None = None
        result: Any = None
        try:
            with self._interrupts.region(job.call):
                job.has_begun = True
                args, kwargs = job.arguments()
                result = job.load()(*args, **kwargs)
                if inspect.iscoroutine(result):
                    result = self._run_coroutine(job, result)
                if job.window is not None:
                    self._send_items(job, result)
        except BaseException as error:  # noqa: BLE001 - user code may raise anything
            failure = self._failure_of(error, job.name, has_begun=job.has_begun)
        self._finish(job, result, failure)

    def _run_coroutine(self, job: Job, coroutine: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return asyncio.run(coroutine)
        if self._asyncio is None:
            self._asyncio = asyncio.Runner()

        async def body() -> Any:
            with self._interrupts.task_region(job.call):
                return await coroutine

        return self._asyncio.run(body())

    def _send_items(self, job: Job, result: Any) -> None:
        assert isinstance(job.window, ThreadWindow)
        items = _sync_items(result, self._next_async)
        try:
            while job.window.take():
                item = next(items, self)  # self: no user's generator yields it
                if item is self:
                    return
                with self._interrupts.pause():
                    self._send_item(job, item)
            raise TaskInterrupt
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    def _next_async(self, iterator: Any) -> Any:
        if self._asyncio is None:
            self._asyncio = asyncio.Runner()

        async def step() -> Any:
            return await anext(iterator)

        return self._asyncio.run(step())

    # ----------------------------------------------------------- one call, async

    async def _perform_async(self, job: Job, limit: asyncio.Semaphore) -> None:
        if job.message.window:
            job.window = AsyncWindow(job.message.window)
        failure: Failure | None = None
        result: Any = None
        try:
            with self._interrupts.task_region(job.call):
                async with limit:
                    job.has_begun = True
                    args, kwargs = job.arguments()
                    result = job.load()(*args, **kwargs)
                    if inspect.isawaitable(result):
                        result = await result
                    if job.window is not None:
                        await self._send_items_async(job, result)
        except BaseException as error:  # noqa: BLE001 - user code may raise anything
            failure = self._failure_of(error, job.name, has_begun=job.has_begun)
        self._finish(job, result, failure)

    async def _send_items_async(self, job: Job, result: Any) -> None:
        assert isinstance(job.window, AsyncWindow)
        try:
            if hasattr(result, "__anext__"):
                while await job.window.take():
                    try:
                        item = await anext(result)
                    except StopAsyncIteration:
                        return
                    self._send_item(job, item)
            else:
                items = iter(result)
                while await job.window.take():
                    item = next(items, self)
                    if item is self:
                        return
                    self._send_item(job, item)
            raise TaskInterrupt
        finally:
            if hasattr(result, "aclose"):
                await result.aclose()
            elif hasattr(result, "close"):
                result.close()

    # ----------------------------------------------------------------- outcomes

    def _send_item(self, job: Job, item: Any) -> None:
        try:
            message = pm.Item(job.call, dumps(item, f"an item of {job.name}()"))
            self._send(message)
        except (SerializationError, FrameError) as error:
            raise SerializationError(str(error)) from None

    def _finish(self, job: Job, result: Any, failure: Failure | None) -> None:
        self._jobs.pop(job.call, None)
        self._interrupts.forget(job.call)
        if job.message.window:
            if failure is not None:
                self._send(pm.Item(job.call, failure))
            self._send(pm.End(job.call))
        else:
            count = job.message.returns
            outcomes = (failure,) * count if failure else self._outcomes(job.name, result, count)
            try:
                self._send(pm.Done(job.call, outcomes))
            except FrameError as error:
                refused = self._make("serialization", f"the result of {job.name}(): {error}")
                self._send(pm.Done(job.call, (refused,) * count))
        if failure is not None and failure.kind == "actor_died" and not self._is_ending:
            self._leave(failure.message)
        if self._is_ending:
            raise SystemExit(0)

    def _outcomes(self, name: str, result: Any, count: int) -> tuple[Outcome, ...]:
        what = f"the result of {name}()"
        try:
            if count == 1:
                return (dumps(result, what),)
            if count == 0:
                return ()
            results = tuple(result)
            if len(results) != count:
                raise ValueError(f"{name}() returned {len(results)} values, not {count}")
            return tuple(dumps(each, what) for each in results)
        except BaseException as error:  # noqa: BLE001 - user code's __reduce__ may raise anything
            return (self._failure_of(error, name),) * count

    def _failure_of(self, error: BaseException, name: str, *, has_begun: bool = True) -> Failure:
        if isinstance(error, (TaskInterrupt, asyncio.CancelledError)):
            when = "while it ran" if has_begun else "before it began"
            failure = self._make("cancelled", f"{name}() was cancelled {when}")
            return msgspec.structs.replace(failure, may_have_run=has_begun)
        if isinstance(error, SerializationError) and _is_ours(error):
            return self._make("serialization", str(error))
        if isinstance(error, SystemExit) and self._is_actor:
            return self._make("actor_died", f"the actor exited: SystemExit({error.code!r})")
        _trim(error)
        return pack_error(error, peer=self._peer, peer_name=self._peer_name)

    def _make(self, kind: Any, message: str) -> Failure:
        return Failure(kind, message, self._peer, self._peer_name)

    def _leave(self, reason: str) -> NoReturn:
        self._send(pm.Leaving(reason))
        flush()
        os._exit(0)


def flush() -> None:
    """Write out what the standard streams hold back."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue


def _is_async(cls: Any) -> bool:
    return any(
        inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)
        for name in dir(cls)
        if callable(member := inspect.getattr_static(cls, name, None))
    )


def _sync_items(result: Any, step: Callable[[Any], Any]) -> Iterator[Any]:
    if not hasattr(result, "__anext__"):
        return iter(result)

    def items() -> Iterator[Any]:
        while True:
            try:
                item = step(result)
            except StopAsyncIteration:
                return
            yield item

    return items()


def _is_ours(error: SerializationError) -> bool:
    """Whether it is about this call's own result; else user code got it from another call."""
    frame = error.__traceback__
    while frame is not None:
        if not frame.tb_frame.f_code.co_filename.startswith(_PACKAGE):
            return False
        frame = frame.tb_next
    return True


def _trim(error: BaseException) -> None:
    """Leave out the frames that led from here to user code."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.tb_next
    if frame is not None:
        error.__traceback__ = frame
