"""Handlers at work: from decoded arguments to the outcome that is sent."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any

from lattica.errors import BadResultError, CallCancelledError
from lattica.rpc import messages as m
from lattica.rpc.bodies import BodySender
from lattica.rpc.channel import Channel
from lattica.rpc.codec import ENCODE_ERRORS, Encoder
from lattica.rpc.context import current_call, trace_id
from lattica.rpc.executors import Executors, start
from lattica.rpc.failures import to_failure
from lattica.rpc.incoming import incoming
from lattica.rpc.item_writer import ItemWriter, Stopped
from lattica.rpc.runner import Rest
from lattica.rpc.served import Served
from lattica.rpc.uploads import produce
from lattica.rpc.work import Pool


class Running:
    """Runs the handlers of one link's calls, and sends what they return."""

    def __init__(
        self,
        channel: Channel,
        encoder: Encoder,
        executors: Executors,
        ended: Callable[[Served], None],
    ) -> None:
        """`ended` is called once for each call, when its handler is over."""
        self._channel = channel
        self._control = channel.control
        self._encoder = encoder
        self._executors = executors
        self._ended = ended

    def begin(self, served: Served, task: asyncio.Task[None]) -> Coroutine[Any, Any, Any] | None:
        """See `Jobs`."""
        if served.is_cancelled:
            return None
        served.task = task
        current_call.set(served)
        trace_id.set(served.trace)
        handler, spec = served.handler, served.handler.spec
        if spec.is_stream:
            return self._stream(served)
        arguments, served.arguments = served.arguments, None
        if handler.pool is not None:
            return self._outside(served, handler.pool, arguments)
        coroutine: Coroutine[Any, Any, Any]
        if served.items is None:
            coroutine = spec.invoke(handler.function, arguments)
        else:
            coroutine = spec.invoke(handler.function, arguments, self._incoming(served))
        return coroutine

    def _incoming(self, served: Served) -> AsyncGenerator[Any, None] | None:
        if served.items is None:
            return None
        return incoming(served.items, served.remote.name or served.remote.peer.short)

    async def _outside(self, served: Served, pool: Pool, arguments: Any) -> Any:
        work = start(pool, served.handler.spec, served.handler.function, arguments)
        served.work = work.done
        return await work.result()

    def blocked(self, served: Served, seconds: float) -> None:
        """See `Jobs`."""
        served.handler.blocked(seconds)

    def returned(self, served: Served, value: Any) -> Awaitable[None] | None:
        """See `Jobs`."""
        if served.handler.spec.is_stream:
            return None
        if self._control.is_full:
            return self._send_later(served, value)
        try:
            self._send(served, value)
        except BaseException as error:  # noqa: BLE001 - a value of a wrong type
            self._failed(served, error)
        self._ended(served)
        return None

    def raised(self, served: Served, error: BaseException) -> None:
        """See `Jobs`."""
        try:
            self._failed(served, error)
        finally:
            self._ended(served)

    async def waits(self, served: Served, rest: Rest) -> None:
        """See `Jobs`."""
        if served.handler.spec.is_stream:
            await rest
            return
        try:
            value = await rest
        except BaseException as error:  # noqa: BLE001 - whatever user code raises is the outcome
            self.raised(served, error)
        else:
            await self._send_later(served, value)

    async def _send_later(self, served: Served, value: Any) -> None:
        try:
            if self._control.is_full:
                await self._control.room()
            self._send(served, value)
        except BaseException as error:  # noqa: BLE001 - a wrong type, a lost link, a cancellation
            self._failed(served, error)
        finally:
            self._ended(served)

    def _send(self, served: Served, value: Any) -> None:
        handler = served.handler
        channel, call, meter = self._channel, served.call, handler.meter
        value = handler.spec.check_result(value)
        if channel.error is not None:
            return
        try:
            if nbytes := self._control.post(m.Result(call, value)):
                meter.bytes_out += nbytes - m.AROUND_RESULT - m.size_of_id(call)
                return
            packed = self._encoder.pack(value)
        except ENCODE_ERRORS as error:
            raise BadResultError(f"{handler.spec.name}(): {error}") from None
        self._control.send(m.Result(call, packed.value, packed.sizes, packed.spilled))
        meter.bytes_out += len(packed.value)
        if packed.views:
            channel.sending.start_body(BodySender(channel, m.Body(call, True), packed.views, meter))

    async def _stream(self, served: Served) -> None:
        handler, spec = served.handler, served.handler.spec
        arguments, served.arguments = served.arguments, None
        writer: ItemWriter | None = None
        try:
            source: Any
            if handler.pool is None:
                source = spec.invoke(handler.function, arguments, self._incoming(served))
                if inspect.isawaitable(source):
                    source = await source
            else:
                source = self._executors.items(spec, handler.function, arguments)
                served.work = source.done
            header = m.Items(served.call)
            items = spec.result_items
            writer = ItemWriter(self._channel, header, self._encoder, items, handler.meter)
            await produce(source, writer)
            await writer.finish(m.End())
        except Stopped:
            served.failed(CallCancelledError.__name__)  # the `Cancel` itself may still come
        except BaseException as error:  # noqa: BLE001 - whatever user code raises is the outcome
            await self._broken(served, writer, error)
        finally:
            if writer is not None:
                writer.abandon()
            self._ended(served)

    async def _broken(
        self, served: Served, writer: ItemWriter | None, error: BaseException
    ) -> None:
        if writer is None or served.is_cancelled:
            self._failed(served, error)
            return
        failure = self._failure(served, error)
        try:
            await writer.finish(m.Broken(failure))
        except (Stopped, asyncio.CancelledError):
            pass  # the caller has gone meanwhile

    def _failed(self, served: Served, error: BaseException) -> None:
        if not served.is_cancelled:
            self._control.send(self._failure(served, error))
        if isinstance(error, KeyboardInterrupt):
            raise error

    def _failure(self, served: Served, error: BaseException) -> m.Failure:
        if isinstance(error, asyncio.CancelledError):
            error = CallCancelledError("the handler was cancelled")
        served.failed(type(error).__name__)
        # A traceback tells of paths and code: for members only.
        members = bool(self._channel.link.remote.scopes)
        return to_failure(served.call, error, with_traceback=members)
