"""Calls of a peer to itself: the same checks and errors, without a link or a copy."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import AsyncGenerator, Awaitable
from typing import Any

from lattica.errors import (
    BadResultError,
    BusyError,
    CallCancelledError,
    DeadlineError,
    LatticaError,
)
from lattica.identity.grants import MEMBER
from lattica.identity.keys import PeerId
from lattica.rpc.blocking import watched
from lattica.rpc.codec import DECODE_ERRORS, ENCODE_ERRORS, place
from lattica.rpc.context import CallContext, current_call, trace_id
from lattica.rpc.executors import start
from lattica.rpc.failures import to_error, to_failure
from lattica.rpc.local_upload import LocalUpload
from lattica.rpc.methods import MethodSpec
from lattica.rpc.registry import Handler, Registry
from lattica.rpc.work import Outcome, Work

_SCOPES = frozenset(MEMBER)


class LocalCalls:
    """Runs handlers in the caller's task, so the caller's cancellation is the handler's."""

    def __init__(self, registry: Registry, local: PeerId, name: str) -> None:
        self._registry = registry
        self._local = local
        self._name = name
        self._share = registry.share(local)
        self._block_warning = registry.config.block_warning

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def call(
        self, service: str, method: MethodSpec, arguments: Any, deadline: float, source: Any = None
    ) -> Any:
        """See `Calls.call`, and with a `source` `Calls.upload`."""
        handler = self._find(service, method)
        arrived = await self._enter(handler, deadline)
        began, context = self._now(), self._context(deadline)
        work: Work | None = None
        upload = self._upload(handler, source)

        async def outside() -> Any:
            nonlocal work
            assert handler.pool is not None
            work = start(handler.pool, handler.spec, handler.function, arguments)
            return await work.result()

        try:
            if handler.pool is None:
                items = upload and upload.items()
                value = await self._step(context, self._inside, handler, arguments, items)
            else:
                value = await self._step(context, outside)
            value = handler.spec.check_result(value)
            if method.into:
                value = self._placed(method, value)
        except BaseException as error:  # noqa: BLE001 - mapped as over a link
            raise self._mapped(handler, error, upload) from error.__cause__
        finally:
            self._over(handler, arrived, began, work.done if work is not None else None)
            if upload is not None:
                await upload.aclose()
        if upload is not None and upload.error is not None:
            raise upload.error
        return value

    def _placed(self, method: MethodSpec, value: Any) -> Any:
        try:
            return place(value, method.result_decoder, method.into)
        except (*DECODE_ERRORS, *ENCODE_ERRORS) as error:
            raise BadResultError(f"{method.name}(): {error}") from None

    async def stream(
        self, service: str, method: MethodSpec, arguments: Any, deadline: float, source: Any = None
    ) -> AsyncGenerator[Any, None]:
        """See `Calls.start_stream`."""
        handler = self._find(service, method)
        arrived = await self._enter(handler, deadline)
        began = self._now()
        context = self._context(deadline)
        upload = self._upload(handler, source)
        source = None
        try:
            if handler.pool is None:
                invoke = handler.spec.invoke
                sent = upload and upload.items()
                source = await self._step(context, invoke, handler.function, arguments, sent)
            else:
                items = self._registry.executors.items
                source = await self._step(context, items, handler.spec, handler.function, arguments)
            while True:
                try:
                    value = await self._step(context, self._next, handler, source)
                except StopAsyncIteration:
                    break
                yield handler.spec.check_result(value)
        except GeneratorExit:
            handler.meter.failed(CallCancelledError.__name__)
            raise
        except BaseException as error:  # noqa: BLE001 - mapped as over a link
            raise self._mapped(handler, error, upload) from error.__cause__
        finally:
            try:
                if hasattr(source, "aclose"):
                    await source.aclose()
            finally:
                work = source.done if handler.pool is not None and source is not None else None
                self._over(handler, arrived, began, work)
            if upload is not None:
                await upload.aclose()
        if upload is not None and upload.error is not None:
            raise upload.error

    def _inside(self, handler: Handler, arguments: Any, items: Any) -> Awaitable[Any]:
        coroutine = handler.spec.invoke(handler.function, arguments, items)
        return watched(coroutine, handler.blocked, self._block_warning)

    def _next(self, handler: Handler, source: Any) -> Awaitable[Any]:
        return watched(source.__anext__(), handler.blocked, self._block_warning)

    async def _step(self, context: CallContext, function: Any, *args: Any) -> Any:
        """Run a part of the handler as the call it serves, until the deadline."""
        token = current_call.set(context)
        try:
            if math.isinf(context.deadline):
                result = function(*args)
                return await result if inspect.isawaitable(result) else result
            async with asyncio.timeout_at(context.deadline) as timer:
                result = function(*args)
                return await result if inspect.isawaitable(result) else result
        except TimeoutError:
            if not math.isinf(context.deadline) and timer.expired():
                raise _OutOfTime from None
            raise
        finally:
            current_call.reset(token)

    def _find(self, service: str, method: MethodSpec) -> Handler:
        return self._registry.find(service, method.name, self._local, _SCOPES, local=True)

    async def _enter(self, handler: Handler, deadline: float) -> float:
        """Wait for a place, as calls of others do; when that began."""
        admission, share, now = self._registry.admission, self._share, self._now()
        meter = handler.meter
        meter.calls += 1
        if admission.enter(handler.gate, share):
            return now
        waiter = _Waiter()
        for refused in admission.wait(handler.gate, share, waiter, 0, now):
            refused.refuse()
        try:
            async with asyncio.timeout_at(None if math.isinf(deadline) else deadline):
                has_place = await waiter.future
        except BaseException as error:
            if waiter.has_place:
                self._leave(handler, now, self._now())
            else:
                admission.withdraw(handler.gate, share, waiter)
                meter.took(self._now() - now)
            if isinstance(error, TimeoutError):
                meter.failed(DeadlineError.__name__)
                raise DeadlineError("the deadline passed before it was the call's turn") from None
            meter.failed(CallCancelledError.__name__)
            raise
        if not has_place:
            meter.failed(BusyError.__name__)
            meter.took(self._now() - now)
            raise self._registry.busy(handler, self._now())
        return now

    def _over(
        self,
        handler: Handler,
        arrived: float,
        began: float,
        work: asyncio.Future[Outcome] | None,
    ) -> None:
        """The call is over; its place is free once its thread or process is."""
        if work is None or work.done():
            self._leave(handler, arrived, began)
        else:
            work.add_done_callback(lambda _: self._leave(handler, arrived, began))

    def _leave(self, handler: Handler, arrived: float, began: float) -> None:
        now = self._now()
        handler.meter.took(now - arrived)
        admission = self._registry.admission
        for following in admission.leave(handler.gate, self._share, now - began, now):
            following.start()

    def _context(self, deadline: float) -> CallContext:
        return CallContext(self._local, _SCOPES, self._name, deadline, None, trace_id.get())

    def _upload(self, handler: Handler, source: Any) -> LocalUpload | None:
        kind = handler.spec.upload_items
        return None if kind is None else LocalUpload(source, kind, self._name)

    def _mapped(
        self, handler: Handler, error: BaseException, upload: LocalUpload | None
    ) -> BaseException:
        if isinstance(error, _OutOfTime):
            outcome: BaseException
            outcome = error = DeadlineError("the deadline passed before the call had an outcome")
        elif isinstance(error, asyncio.CancelledError):
            task, outcome = asyncio.current_task(), error
            is_callers = task is None or task.cancelling()
            error = CallCancelledError("the handler was cancelled")
            if not is_callers:
                outcome = self._as_remote(error)
        elif isinstance(error, KeyboardInterrupt | GeneratorExit):
            outcome = error
        else:
            outcome = self._as_remote(error)
        handler.meter.failed(type(error).__name__)
        if upload is not None and upload.error is not None:
            return upload.error
        return outcome

    def _as_remote(self, error: BaseException) -> LatticaError:
        return to_error(to_failure(0, error, with_traceback=True), self._name)


class _Waiter:
    """A call that waits in its caller's task."""

    def __init__(self) -> None:
        self.future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.has_place = False  # also where the caller is cancelled in the same turn

    def start(self) -> None:
        """See `Waiting`."""
        self.has_place = True
        self._settle(True)

    def refuse(self) -> None:
        """See `Waiting`."""
        self._settle(False)

    def _settle(self, has_place: bool) -> None:
        if not self.future.done():
            self.future.set_result(has_place)


class _OutOfTime(Exception):  # noqa: N818 - never leaves this module
    """The call's own deadline, not a TimeoutError of the handler."""
