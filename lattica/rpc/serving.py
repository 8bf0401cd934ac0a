"""The serving side of one link: calls that the peer makes here."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import msgspec

from lattica.config import MIB
from lattica.errors import (
    BadArgumentsError,
    BusyError,
    CallCancelledError,
    DeadlineError,
    FrameError,
    LatticaError,
    LinkLostError,
    StreamTruncatedError,
)
from lattica.rpc import messages as m
from lattica.rpc.bodies import BodyReceiver
from lattica.rpc.channel import Channel
from lattica.rpc.failures import to_failure
from lattica.rpc.interface import Sink
from lattica.rpc.item_reader import ItemReader
from lattica.rpc.meter import Meter
from lattica.rpc.registry import Handler, Registry
from lattica.rpc.runner import Runner
from lattica.rpc.running import Running
from lattica.rpc.served import Served
from lattica.rpc.sweep import Sweep

STRANGER_BODY = 16 * MIB  # what a peer without scopes may send beside a call,
STRANGER_HELD = 64 * MIB  # beside all its calls in flight,
STRANGER_CALLS = 1024  # and how many those may be
MEMBER_RESULTS = 256 * MIB  # results that wait to be taken, before a peer may ask for more,
STRANGER_RESULTS = 64 * MIB  # and those of a peer without scopes
RETRY_AFTER = 0.1  # seconds: one peer has too much in flight, and knows best for how long


class Serving:
    """Runs the calls of one peer, each in a task of the `Rpc`'s group."""

    def __init__(
        self,
        channel: Channel,
        registry: Registry,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._channel = channel
        self._control = channel.control
        self._remote = channel.link.remote
        self._registry = registry
        self._now = asyncio.get_running_loop().time
        self._sweep = Sweep(self._expire)
        self._running = Running(channel, channel.control.encoder, registry.executors, self._end)
        self._runner: Runner[Served] = Runner(
            tasks, self._running, block_limit=channel.config.block_warning
        )
        self._admission = registry.admission
        self._share = registry.share(channel.link.remote.peer)
        self._calls: dict[int, Served] = {}
        self.held = 0  # bytes of arguments of these calls
        self._last = -1  # the newest call's id
        # Data streams that came before their call.
        self._early: dict[int, BodyReceiver] = {}
        self._early_items: dict[int, ItemReader] = {}

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
        early = self._early.pop(message.call, None) if self._early else None
        items = self._early_items.pop(message.call, None) if self._early_items else None
        inline = nbytes = len(message.args)
        if message.sizes:
            nbytes += sum(message.sizes)
        now, remote = self._channel.now, self._remote
        meter: Meter | None = None
        try:
            handler = self._registry.find(
                message.service, message.method, remote.peer, remote.scopes, local=False
            )
            meter = handler.meter
            meter.calls += 1
            meter.bytes_in += inline
            arguments = self._admit(handler, message, nbytes)
        except LatticaError as error:
            if meter is not None:
                meter.failed(type(error).__name__)
                meter.took(self._now() - now)
            if early is not None:
                early.abandon(m.REFUSED)
            if items is not None:
                items.abandon(m.REFUSED)
            self._control.send(to_failure(message.call, error, with_traceback=False))
            return
        timeout = message.timeout if message.timeout > 0 else 0.0  # NaN as well
        deadline = now + timeout
        trace = message.trace
        served = Served(self, message.call, handler, remote, nbytes, now, deadline, trace)
        served.arguments = arguments
        self._calls[message.call] = served
        self.held += nbytes
        if handler.spec.upload is not None:
            served.items = items or ItemReader(self._channel)
            served.items.begin(handler.spec.upload_items, handler.meter)
        elif items is not None:
            items.abandon(m.REFUSED)
        if deadline < self._sweep.armed:
            self._sweep.arm(deadline)
        if message.sizes:
            # Its value refers to a whole frame, which must not stay as long as the body takes.
            args = message.args.copy()
            served.message = m.Call(message.call, "", "", 0.0, args, message.sizes, message.spilled)
            served.body = early or BodyReceiver(self._channel)
            served.body.announce(message.sizes, served.body_done, handler.meter)
            return
        if early is not None:
            raise FrameError("a body for a call without one")
        self._run(served)

    def body_done(self, served: Served, problem: str) -> None:
        """The buffers of a call have arrived, or will not."""
        message, served.message = served.message, None
        if message is None or served.call not in self._calls:
            return
        try:
            if problem:
                raise BadArgumentsError(problem)
            assert served.body is not None
            views, served.body = served.body.views(), None
            served.arguments = self._decode(message, served.handler, views)
        except BadArgumentsError as error:
            # A body is only given up by a caller that cancels: its `Cancel` is on its way.
            kind = CallCancelledError if problem else BadArgumentsError
            served.failed(kind.__name__)
            self._end(served)
            self._control.send(to_failure(message.call, error, with_traceback=False))
        else:
            served.began = self._now()
            self._run(served)

    def claim(self, header: m.Header, stream: int) -> Sink | None:
        """The sink of a call's body or items, which may come before the call."""
        if isinstance(header, m.Items):
            return self._claim_items(header.call, stream)
        body: BodyReceiver | None
        if header.call <= self._last:
            served = self._calls.get(header.call)
            body = served.body if served is not None else None
            if body is None:
                return None  # refused or cancelled
        else:
            if header.call in self._early:
                raise FrameError("two bodies for one message")
            self._check_early()
            body = self._early[header.call] = BodyReceiver(self._channel)
        body.attach(stream)
        return body

    def _claim_items(self, call: int, stream: int) -> Sink | None:
        items: ItemReader | None
        if call <= self._last:
            served = self._calls.get(call)
            items = served.items if served is not None else None
            if items is None or items.is_closed:
                return None  # the call is over, or takes no items
        else:
            if call in self._early_items:
                raise FrameError("two item streams for one call")
            self._check_early()
            items = self._early_items[call] = ItemReader(self._channel, is_early=True)
        items.attach(stream)
        return items

    def _check_early(self) -> None:
        early = len(self._early) + len(self._early_items)
        if early >= self._channel.config.max_streams_per_peer:
            raise FrameError("too many bodies without a call")

    def cancel(self, call: int, kind: str = CallCancelledError.__name__) -> None:
        """The caller wants the outcome no more. The handler is cancelled once, and may clean up."""
        served = self._calls.get(call)
        if served is None or served.is_cancelled:
            return
        served.is_cancelled = True
        served.failed(kind)
        if served.task is not None:
            served.task.cancel()
        else:
            self._end(served)

    def _expire(self, now: float) -> float:
        """Cancel what is due, whose callers know by their own clocks; the next deadline."""
        following = math.inf
        for served in tuple(self._calls.values()):
            if served.deadline > now:
                following = min(following, served.deadline)
            else:
                self.cancel(served.call, DeadlineError.__name__)
        return following

    def lost(self) -> None:
        """The link is gone: nobody waits for these any more."""
        self._sweep.close()
        self._early.clear()
        self._early_items.clear()
        for call, served in tuple(self._calls.items()):
            self.cancel(call, LinkLostError.__name__)
            if served.items is not None:
                served.items.fail(StreamTruncatedError("the link was lost"))

    # ---------------------------------------------------------------- admission

    def _admit(self, handler: Handler, message: m.Call, nbytes: int) -> Any:
        """The arguments of a call that may run, None while their buffers are awaited."""
        remote, config = self._remote, self._channel.config
        member = bool(remote.scopes)
        calls = config.max_calls_per_peer
        if len(self._calls) >= (calls if member else min(calls, STRANGER_CALLS)):
            raise self._busy(f"{len(self._calls)} calls of {remote.peer.short} are in flight")
        if self._channel.sending.waiting_bytes > (MEMBER_RESULTS if member else STRANGER_RESULTS):
            raise self._busy(f"{remote.peer.short} takes its results too slowly")
        if handler.spec.is_stream and not self._channel.sending.has_place_for_items:
            raise self._busy(f"no more streams to {remote.peer.short} for now")
        held = limit = config.max_body
        if not member:
            limit, held = min(limit, STRANGER_BODY), STRANGER_HELD
        if message.sizes and sum(message.sizes) > limit:
            self._registry.counters["refused:too_large"] += 1
            raise BadArgumentsError(f"{nbytes} bytes of arguments; at most {limit} are taken")
        if self.held and self.held + nbytes > held:
            raise self._busy(f"{self.held} bytes of {remote.peer.short} are in use")
        if self._admission.is_hopeless(handler.gate, self._share):
            raise self._registry.busy(handler, self._now())
        return None if message.sizes else self._decode(message, handler, ())

    def _busy(self, reason: str) -> BusyError:
        self._registry.counters["refused:busy"] += 1
        return BusyError(reason, retry_after=RETRY_AFTER)

    def _decode(self, message: m.Call, handler: Handler, views: Any) -> Any:
        spec = handler.spec
        try:
            return spec.args_decoder.unpack(message.args, views, message.spilled)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self._registry.counters["refused:bad_arguments"] += 1
            raise spec.bad_arguments(str(error)) from None

    # ---------------------------------------------------------------- running

    def _run(self, served: Served) -> None:
        """Start the call, or let it wait for its turn."""
        handler = served.handler
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
        served.began = self._now()
        self._start(served)

    def refuse(self, served: Served) -> None:
        """A call found no place, or lost it to one of a peer that has fewer."""
        served.is_waiting = False
        served.failed(BusyError.__name__)
        self._end(served)
        error = self._registry.busy(served.handler, self._now())
        self._control.send(to_failure(served.call, error, with_traceback=False))

    def _start(self, served: Served) -> None:
        served.started = True
        self._runner.add(served)

    def _end(self, served: Served) -> None:
        if self._calls.pop(served.call, None) is None:
            return
        self.held -= served.nbytes
        served.task = None  # it may be another's by now
        if served.started:
            if served.work is None or served.work.done():
                self._leave(served)
            else:  # its thread goes on, or its process still ends
                served.work.add_done_callback(lambda _: self._leave(served))
        else:
            served.handler.meter.took(self._now() - served.arrived)
            if served.is_waiting:
                self._admission.withdraw(served.handler.gate, self._share, served)
        if served.body is not None:
            served.body.abandon()
        if served.items is not None:
            served.items.abandon()

    def _leave(self, served: Served) -> None:
        now, handler = self._now(), served.handler
        handler.meter.took(now - served.arrived)
        seconds = now - served.began
        for following in self._admission.leave(handler.gate, self._share, seconds, now):
            following.start()
