"""The serving side of one link: calls that peers make here."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import Counter
from typing import Any

import msgspec

from lattica.errors import (
    BadArgumentsError,
    BadResultError,
    BusyError,
    CallCancelledError,
    FrameError,
    LatticaError,
    PermissionDeniedError,
    UnknownMethodError,
)
from lattica.identity.grants import allows
from lattica.identity.keys import PeerId
from lattica.rpc import messages as m
from lattica.rpc.bodies import BodyReceiver, BodySender
from lattica.rpc.channel import Channel, Sink
from lattica.rpc.codec import Encoder, Packed
from lattica.rpc.context import CallContext, current_call, trace_id
from lattica.rpc.failures import to_failure
from lattica.rpc.items import ItemWriter, Stopped
from lattica.rpc.methods import MethodSpec

log = logging.getLogger("lattica.rpc")
STRANGER_BODY = 16 * 1024 * 1024  # bytes that a peer without scopes may send beside a call
MAX_LOGGED = 1024  # (peer, method) pairs


class Handler:
    """One method of a registered service, and what it has done."""

    __slots__ = ("calls", "errors", "function", "running", "spec")

    def __init__(self, spec: MethodSpec, function: Any) -> None:
        self.spec = spec
        self.function = function
        self.calls = 0
        self.errors = 0
        self.running = 0


class Registry:
    """What this peer serves, and what it refused."""

    def __init__(self, counters: Counter[str]) -> None:
        self.services: dict[str, dict[str, Handler]] = {}
        self.counters = counters
        self._logged: set[tuple[PeerId, str]] = set()

    def add(self, name: str, instance: Any, specs: dict[str, MethodSpec]) -> None:
        """Serve the methods of `instance` as `name`."""
        if name in self.services:
            raise ValueError(f"a service {name!r} is registered already")
        self.services[name] = {
            spec.name: Handler(spec, getattr(instance, spec.name)) for spec in specs.values()
        }

    def find(
        self, service: str, method: str, peer: PeerId, scopes: frozenset[str], *, local: bool
    ) -> Handler:
        """The handler of a method that a peer with `scopes` may call.

        Raises:
            UnknownMethodError, PermissionDeniedError.
        """
        handlers = self.services.get(service)
        handler = handlers.get(method) if handlers is not None else None
        if handler is None:
            self.counters["refused:unknown_method"] += 1
            known = ""
            if handlers is not None and (scopes or local):
                known = f"; {service!r} has {', '.join(sorted(handlers))}"
            elif scopes or local:
                known = f"; the services here are {', '.join(sorted(self.services)) or 'none'}"
            raise UnknownMethodError(f"no method {service}.{method}{known}")
        wanted = handler.spec.scope
        if wanted is not None and not local and not allows(scopes, wanted):
            self.counters["refused:permission"] += 1
            full = f"{service}.{method}"
            if (peer, full) not in self._logged and len(self._logged) < MAX_LOGGED:
                self._logged.add((peer, full))
                log.warning("refused %s to %s: no grant for %r", full, peer.short, wanted)
            raise PermissionDeniedError(
                f"{full} asks for the grant {wanted!r}, which {peer.short} does not hold; "
                "join the mesh with a ticket"
            )
        return handler


class _Serving:
    """One call being served."""

    __slots__ = ("body", "call", "handler", "message", "serving", "slot", "started", "task")

    def __init__(self, serving: Serving, message: m.Call, handler: Handler) -> None:
        self.serving = serving
        self.call = message.call
        self.message = message
        self.handler = handler
        self.body: BodyReceiver | None = None
        self.task: asyncio.Task[None] | None = None
        self.started = False
        self.slot = -1

    def expire(self) -> None:
        """The deadline has passed: the caller knows by its own clock."""
        self.serving.cancel(self.call)


class Serving:
    """Runs the calls of one peer."""

    def __init__(
        self,
        channel: Channel,
        registry: Registry,
        timer: Any,
        encoder: Encoder,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._channel = channel
        self._registry = registry
        self._timer = timer
        self._encoder = encoder
        self._tasks = tasks
        self._calls: dict[int, _Serving] = {}
        self._last = -1
        self._early: dict[int, BodyReceiver] = {}  # bodies that came before their call

    def __len__(self) -> int:
        return len(self._calls)

    # ------------------------------------------------------------ from the link

    def call(self, message: m.Call) -> None:
        """Start a call, or refuse it."""
        if message.call <= self._last:
            raise FrameError("call ids must grow")
        if message.trace and len(message.trace) != m.TRACE_BYTES:
            raise FrameError("a trace id has 16 bytes")
        self._last = message.call
        early = self._early.pop(message.call, None)
        try:
            handler, arguments = self._admit(message)
        except LatticaError as error:
            if early is not None:
                early.abandon(m.REFUSED)
            self._channel.send(to_failure(message.call, error, with_traceback=False))
            return
        serving = self._calls[message.call] = _Serving(self, message, handler)
        timeout = message.timeout
        if timeout != timeout or timeout < 0:
            timeout = 0.0
        deadline = self._timer.now() + timeout
        serving.slot = self._timer.add(serving, deadline)
        remote = self._channel.link.remote
        context = CallContext(remote.peer, remote.scopes, remote.name, deadline, message.trace)
        if not message.sizes:
            self._run(serving, context, arguments)
            return

        def done(problem: str) -> None:
            if serving.call not in self._calls:
                return
            if problem:
                self._end(serving)
                self._channel.send(
                    to_failure(serving.call, BadArgumentsError(problem), with_traceback=False)
                )
                return
            assert serving.body is not None
            views = serving.body.views()
            serving.body = None
            try:
                arguments = self._decode(message, handler.spec, views)
            except BadArgumentsError as error:
                self._end(serving)
                self._channel.send(to_failure(serving.call, error, with_traceback=False))
            else:
                self._run(serving, context, arguments)

        serving.body = early if early is not None else BodyReceiver(self._channel)
        serving.body.announce(message.sizes, done)

    def _admit(self, message: m.Call) -> tuple[Handler, Any]:
        remote, config = self._channel.link.remote, self._channel.config
        handler = self._registry.find(
            message.service, message.method, remote.peer, remote.scopes, local=False
        )
        counters = self._registry.counters
        if len(self._calls) >= config.max_calls_per_peer:
            counters["refused:busy"] += 1
            raise BusyError(
                f"{len(self._calls)} calls of {remote.peer.short} are in flight", retry_after=0.1
            )
        if message.sizes:
            limit = config.max_body if remote.scopes else min(config.max_body, STRANGER_BODY)
            if sum(message.sizes) > limit:
                counters["refused:too_large"] += 1
                raise BadArgumentsError(
                    f"{sum(message.sizes)} bytes of arguments; at most {limit} are taken"
                )
            return handler, None
        return handler, self._decode(message, handler.spec, ())

    def _decode(self, message: m.Call, spec: MethodSpec, views: Any) -> Any:
        try:
            return spec.args_decoder.unpack(message.args, views, message.spilled)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self._registry.counters["refused:bad_arguments"] += 1
            raise BadArgumentsError(f"{spec.name}{spec.signature}: {error}") from None

    def claim(self, header: m.Body, stream: int) -> Sink | None:
        """The sink of a call's body, which may come before the call."""
        body: BodyReceiver | None
        if header.call <= self._last:
            serving = self._calls.get(header.call)
            body = serving.body if serving is not None else None
            if body is None:
                return None  # refused or cancelled
        else:
            if header.call in self._early:
                raise FrameError("two bodies for one message")
            if len(self._early) >= self._channel.config.max_streams_per_peer:
                raise FrameError("too many bodies without a call")
            body = self._early[header.call] = BodyReceiver(self._channel)
        body.attach(stream)
        return body

    def cancel(self, call: int) -> None:
        """The caller wants the outcome no more."""
        serving = self._calls.get(call)
        if serving is None:
            return
        if serving.task is not None:
            serving.task.cancel()
        if not serving.started:
            self._end(serving)

    def lost(self) -> None:
        """The link is gone: nobody waits for these any more."""
        self._early.clear()
        for call in tuple(self._calls):
            self.cancel(call)

    # ---------------------------------------------------------------- running

    def _run(self, serving: _Serving, context: CallContext, arguments: Any) -> None:
        run = self._stream if serving.handler.spec.is_stream else self._unary
        serving.handler.calls += 1
        serving.handler.running += 1
        serving.task = self._tasks.create_task(run(serving, context, arguments))

    def _end(self, serving: _Serving) -> None:
        if self._calls.pop(serving.call, None) is None:
            return
        self._timer.discard(serving.slot, serving)
        if serving.task is not None:
            serving.handler.running -= 1
        if serving.body is not None:
            serving.body.abandon()

    async def _unary(self, serving: _Serving, context: CallContext, arguments: Any) -> None:
        serving.started = True
        current_call.set(context)
        trace_id.set(context.trace)
        handler = serving.handler
        channel = self._channel
        try:
            value = await handler.spec.invoke(handler.function, arguments)
            packed = self._pack(handler.spec, value)
            if channel.is_full:
                await channel.room()
        except asyncio.CancelledError:
            self._cancelled(serving)
        except Exception as error:  # noqa: BLE001 - whatever user code raises goes to the caller
            self._failed(serving, error)
        else:
            channel.send(m.Result(serving.call, packed.value, packed.sizes, packed.spilled))
            if packed.views:
                sender = BodySender(channel, m.Body(serving.call, True), packed.views, _ignore)
                sender.start()
        finally:
            self._end(serving)

    async def _stream(self, serving: _Serving, context: CallContext, arguments: Any) -> None:
        serving.started = True
        current_call.set(context)
        trace_id.set(context.trace)
        spec = serving.handler.spec
        writer: ItemWriter | None = None
        source: Any = None
        try:
            source = spec.invoke(serving.handler.function, arguments)
            if inspect.isawaitable(source):
                source = await source
            writer = ItemWriter(self._channel, serving.call)
            last: m.End | m.Broken = m.End()
            try:
                async for value in source:
                    await writer.send(self._pack(spec, value))
            except Stopped:
                raise
            except Exception as error:  # noqa: BLE001 - goes to the caller
                last = m.Broken(self._failure(serving, error))
            await writer.finish(last)
        except (asyncio.CancelledError, Stopped):
            if writer is None:
                self._cancelled(serving)
        except Exception as error:  # noqa: BLE001 - goes to the caller
            self._failed(serving, error)
        finally:
            if writer is not None:
                writer.abandon()
            self._end(serving)
            if source is not None and hasattr(source, "aclose"):
                await source.aclose()

    def _pack(self, spec: MethodSpec, value: Any) -> Packed:
        value = spec.check_result(value)
        try:
            return self._encoder.pack(value)
        except (
            msgspec.MsgspecError,
            TypeError,
            ValueError,
            OverflowError,
            RecursionError,
            NotImplementedError,
        ) as error:
            raise BadResultError(f"{spec.name}(): {error}") from None

    def _failure(self, serving: _Serving, error: BaseException) -> m.Failure:
        serving.handler.errors += 1
        # A traceback tells of paths and code: for members only.
        members = bool(self._channel.link.remote.scopes)
        return to_failure(serving.call, error, with_traceback=members)

    def _failed(self, serving: _Serving, error: BaseException) -> None:
        self._channel.send(self._failure(serving, error))

    def _cancelled(self, serving: _Serving) -> None:
        # The caller that cancelled ignores this; one whose handler cancelled itself needs it.
        self._failed(serving, CallCancelledError("the handler was cancelled"))


def _ignore(code: int) -> None:
    """The caller wants the result's body no more; nothing is left to do."""
