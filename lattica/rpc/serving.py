"""The serving side of one link: calls that the peer makes here."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from lattica.config import MIB
from lattica.errors import BadArgumentsError, BusyError, FrameError, LatticaError
from lattica.rpc import messages as m
from lattica.rpc.bodies import BodyReceiver
from lattica.rpc.channel import Channel
from lattica.rpc.codec import NIL, Encoder
from lattica.rpc.context import CallContext
from lattica.rpc.failures import to_failure
from lattica.rpc.interface import Sink
from lattica.rpc.methods import MethodSpec
from lattica.rpc.registry import Handler, Registry
from lattica.rpc.running import Running
from lattica.rpc.served import Served, size_of
from lattica.rpc.timer import Timer

STRANGER_BODY = 16 * MIB  # what a peer without scopes may send beside a call,
STRANGER_HELD = 64 * MIB  # beside all its calls in flight,
STRANGER_CALLS = 1024  # and how many those may be
RETRY_AFTER = 0.1  # seconds: one peer has too much in flight, and knows best for how long


class Serving:
    """Runs the calls of one peer, each in a task of the `Rpc`'s group."""

    def __init__(
        self,
        channel: Channel,
        registry: Registry,
        timer: Timer,
        encoder: Encoder,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._channel = channel
        self._registry = registry
        self._timer = timer
        self._tasks = tasks
        self._running = Running(channel, encoder, self._end)
        self._admission = registry.admission
        self._share = registry.share(channel.link.remote.peer)
        self._calls: dict[int, Served] = {}
        self._held = 0  # bytes of arguments of these calls
        self._last = -1  # the newest call's id
        self._early: dict[int, BodyReceiver] = {}  # bodies that came before their call

    def __len__(self) -> int:
        return len(self._calls)

    # ------------------------------------------------------------ from the link

    def call(self, message: m.Call) -> None:
        """Start a call, or refuse it."""
        if message.call <= self._last:
            raise FrameError("call ids must grow")
        if message.trace and len(message.trace) != m.TRACE_BYTES:
            raise FrameError(f"a trace id has {m.TRACE_BYTES} bytes")
        self._last = message.call
        early = self._early.pop(message.call, None)
        try:
            handler, arguments = self._admit(message)
        except LatticaError as error:
            if early is not None:
                early.abandon(m.REFUSED)
            self._channel.send(to_failure(message.call, error, with_traceback=False))
            return
        timeout = message.timeout if message.timeout > 0 else 0.0  # NaN as well
        now, remote = self._timer.now(), self._channel.link.remote
        deadline = now + timeout
        context = CallContext(remote.peer, remote.scopes, remote.name, deadline, message.trace)
        # Its arguments refer to a whole frame, which must not stay as long as the call.
        args = message.args.copy() if message.sizes else NIL
        nbytes = size_of(message)
        message = m.Call(message.call, "", "", 0.0, args, message.sizes, message.spilled)
        served = self._calls[message.call] = Served(self, message, handler, context, nbytes, now)
        served.arguments = arguments
        self._held += served.nbytes
        served.slot = self._timer.add(served, deadline)
        if message.sizes:
            served.body = early or BodyReceiver(self._channel)
            served.body.announce(message.sizes, served.body_done)
            return
        if early is not None:
            raise FrameError("a body for a call without one")
        self._run(served)

    def body_done(self, served: Served, problem: str) -> None:
        """The buffers of a call have arrived, or will not."""
        message = served.message
        if message.call not in self._calls:
            return
        try:
            if problem:
                raise BadArgumentsError(problem)
            assert served.body is not None
            views, served.body = served.body.views(), None
            served.arguments = self._decode(message, served.handler.spec, views)
        except BadArgumentsError as error:
            self._end(served)
            self._channel.send(to_failure(message.call, error, with_traceback=False))
        else:
            served.began = self._timer.now()
            self._run(served)

    def claim(self, header: m.Body, stream: int) -> Sink | None:
        """The sink of a call's body, which may come before the call."""
        body: BodyReceiver | None
        if header.call <= self._last:
            served = self._calls.get(header.call)
            body = served.body if served is not None else None
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
        """The caller wants the outcome no more. The handler is cancelled once, and may clean up."""
        served = self._calls.get(call)
        if served is None or served.is_cancelled:
            return
        served.is_cancelled = True
        if served.task is not None:
            served.task.cancel()
        if not served.started:
            self._end(served)

    def lost(self) -> None:
        """The link is gone: nobody waits for these any more."""
        self._early.clear()
        for call in tuple(self._calls):
            self.cancel(call)

    # ---------------------------------------------------------------- admission

    def _admit(self, message: m.Call) -> tuple[Handler, Any]:
        remote, config = self._channel.link.remote, self._channel.config
        handler = self._registry.find(
            message.service, message.method, remote.peer, remote.scopes, local=False
        )
        member = bool(remote.scopes)
        calls = config.max_calls_per_peer
        if len(self._calls) >= (calls if member else min(calls, STRANGER_CALLS)):
            raise self._busy(f"{len(self._calls)} calls of {remote.peer.short} are in flight")
        if handler.spec.is_stream and not self._channel.has_place_for_items:
            raise self._busy(f"no more streams to {remote.peer.short} for now")
        nbytes, limit = size_of(message), config.max_body
        held = limit
        if not member:
            limit, held = min(limit, STRANGER_BODY), STRANGER_HELD
        if sum(message.sizes) > limit:
            self._registry.counters["refused:too_large"] += 1
            raise BadArgumentsError(f"{nbytes} bytes of arguments; at most {limit} are taken")
        if self._held and self._held + nbytes > held:
            raise self._busy(f"{self._held} bytes of {remote.peer.short} are in use")
        if self._admission.is_hopeless(handler.gate, self._share):
            raise self._registry.busy(handler, self._timer.now())
        if not message.sizes:
            return handler, self._decode(message, handler.spec, ())
        return handler, None

    def _busy(self, reason: str) -> BusyError:
        self._registry.counters["refused:busy"] += 1
        return BusyError(reason, retry_after=RETRY_AFTER)

    def _decode(self, message: m.Call, spec: MethodSpec, views: Any) -> Any:
        try:
            return spec.args_decoder.unpack(message.args, views, message.spilled)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self._registry.counters["refused:bad_arguments"] += 1
            raise BadArgumentsError(f"{spec.name}{spec.signature}: {error}") from None

    # ---------------------------------------------------------------- running

    def _run(self, served: Served) -> None:
        """Start the call, or let it wait for its turn."""
        handler = served.handler
        handler.meter.calls += 1
        handler.meter.bytes_in += served.nbytes
        if self._admission.enter(handler.gate, self._share):
            self._start(served)
            return
        served.is_waiting = True
        gate, now = handler.gate, served.began
        for refused in self._admission.wait(gate, self._share, served, served.nbytes, now):
            refused.refuse()

    def start(self, served: Served) -> None:
        """It is the turn of a call that has waited."""
        served.is_waiting = False
        served.began = self._timer.now()
        self._start(served)

    def refuse(self, served: Served) -> None:
        """A call found no place, or lost it to one of a peer that has fewer."""
        served.is_waiting = False
        self._end(served)
        error = self._registry.busy(served.handler, self._timer.now())
        self._channel.send(to_failure(served.message.call, error, with_traceback=False))

    def _start(self, served: Served) -> None:
        running = self._running
        run = running.stream if served.handler.spec.is_stream else running.unary
        served.task = self._tasks.create_task(run(served))

    def _end(self, served: Served) -> None:
        if self._calls.pop(served.message.call, None) is None:
            return
        self._held -= served.nbytes
        self._timer.discard(served.slot, served)
        if served.task is not None:
            self._leave(served)
        elif served.is_waiting:
            self._admission.withdraw(served.handler.gate, self._share, served)
        if served.body is not None:
            served.body.abandon()

    def _leave(self, served: Served) -> None:
        now, handler = self._timer.now(), served.handler
        handler.meter.took(now - served.arrived)
        seconds = now - served.began
        for following in self._admission.leave(handler.gate, self._share, seconds, now):
            following.start()
