"""Calls of a peer to itself: the same checks, without a link."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import AsyncIterator
from typing import Any

from lattica.errors import (
    CallCancelledError,
    DeadlineError,
    LatticaError,
)
from lattica.identity.keys import PeerId
from lattica.rpc.context import CallContext, current_call, trace_id
from lattica.rpc.failures import to_error, to_failure
from lattica.rpc.methods import MethodSpec
from lattica.rpc.serving import Handler, Registry


class LocalCalls:
    """Runs calls in the caller's task. Errors look as they would from a peer."""

    def __init__(self, registry: Registry, local: PeerId, name: str) -> None:
        self._registry = registry
        self._local = local
        self._name = name

    async def call(self, service: str, method: MethodSpec, arguments: Any, deadline: float) -> Any:
        """See `Calls.call`."""
        handler = self._find(service, method)
        token = current_call.set(self._context(deadline))
        handler.calls += 1
        handler.running += 1
        timer = asyncio.timeout_at(None if math.isinf(deadline) else deadline)
        try:
            async with timer:
                value = await handler.spec.invoke(handler.function, arguments)
            return handler.spec.check_result(value)
        except asyncio.CancelledError:
            raise self._cancelled() from None
        except Exception as error:  # noqa: BLE001 - whatever user code raises is mapped
            if timer.expired() and isinstance(error, TimeoutError):
                raise DeadlineError("the deadline passed before the call had an outcome") from None
            handler.errors += 1
            raise self._error(error) from error
        finally:
            handler.running -= 1
            current_call.reset(token)

    async def stream(
        self, service: str, method: MethodSpec, arguments: Any, deadline: float
    ) -> AsyncIterator[Any]:
        """See `Calls.start_stream`."""
        handler = self._find(service, method)
        context = self._context(deadline)
        handler.calls += 1
        handler.running += 1
        source: Any = None
        try:
            source = await self._step(context, handler.spec.invoke, handler.function, arguments)
            if inspect.isawaitable(source):
                source = await source
            while True:
                try:
                    value = await self._step(context, source.__anext__)
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    if asyncio.get_running_loop().time() >= deadline:
                        raise DeadlineError("the deadline passed") from None
                    raise self._error(error) from error
                except Exception as error:  # noqa: BLE001 - whatever user code raises is mapped
                    handler.errors += 1
                    raise self._error(error) from error
                yield handler.spec.check_result(value)
        finally:
            handler.running -= 1
            if source is not None and hasattr(source, "aclose"):
                await source.aclose()

    async def _step(self, context: CallContext, function: Any, *args: Any) -> Any:
        token = current_call.set(context)
        deadline = context.deadline
        try:
            async with asyncio.timeout_at(None if math.isinf(deadline) else deadline):
                result = function(*args)
                return await result if inspect.isawaitable(result) else result
        finally:
            current_call.reset(token)

    def _find(self, service: str, method: MethodSpec) -> Handler:
        return self._registry.find(service, method.name, self._local, frozenset(), local=True)

    def _context(self, deadline: float) -> CallContext:
        return CallContext(self._local, self._scopes(), self._name, deadline, trace_id.get())

    @staticmethod
    def _scopes() -> frozenset[str]:
        from lattica.identity.grants import MEMBER

        return frozenset(MEMBER)

    def _cancelled(self) -> BaseException:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return asyncio.CancelledError()
        return CallCancelledError("the handler was cancelled")

    def _error(self, error: Exception) -> LatticaError:
        return to_error(to_failure(0, error, with_traceback=True), self._name)
