"""The calling side of one link: calls in flight and their outcomes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from lattica.errors import (
    BadArgumentsError,
    BadResultError,
    DeadlineError,
    FrameError,
    LatticaError,
    LinkError,
    LinkLostError,
    StreamTruncatedError,
)
from lattica.rpc import messages as m
from lattica.rpc.bodies import BodyReceiver, BodySender
from lattica.rpc.channel import Channel, lost_call
from lattica.rpc.codec import DECODE_ERRORS, ENCODE_ERRORS, Packed
from lattica.rpc.context import trace_id
from lattica.rpc.failures import to_error
from lattica.rpc.interface import Sink
from lattica.rpc.item_reader import ItemReader
from lattica.rpc.meter import CalledMeter
from lattica.rpc.methods import MethodSpec
from lattica.rpc.open_stream import OpenStream
from lattica.rpc.pending import Pending
from lattica.rpc.sweep import Sweep
from lattica.rpc.uploads import Upload


class Calls:
    """Sends calls over a channel and settles them."""

    def __init__(self, channel: Channel, tasks: asyncio.TaskGroup) -> None:
        """`tasks` owns what sends the items of callers."""
        self._channel = channel
        self._control = channel.control
        self._tasks = tasks
        self._encoder = self._control.encoder
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._sweep = Sweep(self._expire)
        self._next = 0
        self._written = 0  # calls below this id went to the link
        self._pending: dict[int, Pending] = {}

    def __len__(self) -> int:
        return len(self._pending)

    async def call(
        self,
        service: str,
        method: MethodSpec,
        arguments: Any,
        deadline: float,
        left: float,
        meter: CalledMeter,
    ) -> Any:
        """Run a unary call. `left` is how far away the deadline is, or was a moment ago.

        `meter` counts its bytes, here and in the other kinds of calls.

        Raises:
            RpcError: see `lattica.errors`.
        """
        if self._control.is_full:
            await self._room(deadline)
            left = deadline - self._loop.time()
        pending = self._start(service, method, arguments, deadline, left, meter)
        pending.into = method.into
        try:
            outcome = await pending.future  # bounded: see `_expire`
        except BaseException:
            self.close(pending, settled=False)
            raise
        if type(outcome) is m.Result:
            meter.bytes_in += len(outcome.value)
            if pending.body is None and pending.sender is None and not method.into:
                try:
                    return method.result_decoder.unpack(outcome.value)
                except DECODE_ERRORS as error:
                    raise BadResultError(f"{method.name}(): {error}") from None
            self.close(pending, settled=True)
            return self._decode(method, outcome, pending)
        self.close(pending, settled=type(outcome) is m.Failure)
        raise self.error(outcome)

    async def upload(
        self,
        service: str,
        method: MethodSpec,
        arguments: Any,
        source: Any,
        deadline: float,
        meter: CalledMeter,
    ) -> Any:
        """Run a call that sends the items of `source` and returns one value.

        Raises:
            RpcError: see `lattica.errors`. What `source` raises is raised as it is.
        """
        if self._control.is_full:
            await self._room(deadline)
        left = deadline - self._loop.time()
        pending = self._start(service, method, arguments, deadline, left, meter)
        upload = self._upload(pending, method, source)
        settled = False
        try:
            outcome = await pending.future  # bounded: see `_expire`
            settled = type(outcome) is m.Result or type(outcome) is m.Failure
        finally:
            self.close(pending, settled)
            await upload.close()
        if upload.error is not None:
            raise upload.error
        if type(outcome) is m.Result:
            meter.bytes_in += len(outcome.value)
            return self._decode(method, outcome, pending)
        raise self.error(outcome)

    def _upload(self, pending: Pending, method: MethodSpec, source: Any) -> Upload:
        assert method.upload_items is not None
        items = method.upload_items
        meter = pending.meter
        upload = Upload(self._channel, self._encoder, pending.call, items, source, meter)
        upload.start(self._tasks)
        return upload

    async def start_stream(
        self,
        service: str,
        method: MethodSpec,
        arguments: Any,
        source: Any,
        deadline: float,
        meter: CalledMeter,
        began: float,
    ) -> OpenStream:
        """Start a call whose items are then read from the result; `source` makes those to send.

        `meter` is told of its end, which counts from `began`.
        """
        if self._control.is_full:
            await self._room(deadline)
        left = deadline - self._loop.time()
        pending = self._start(service, method, arguments, deadline, left, meter)
        pending.items = ItemReader(self._channel)
        pending.items.begin(method.result_items, meter)
        upload = self._upload(pending, method, source) if method.upload is not None else None
        return OpenStream(self, pending, upload, began)

    async def _room(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(None if math.isinf(deadline) else deadline):
                await self._control.room()
        except TimeoutError:
            raise DeadlineError("the link did not take the call in time") from None
        except LinkLostError as error:
            raise lost_call(error, may_have_run=False) from None

    def _start(
        self,
        service: str,
        method: MethodSpec,
        arguments: Any,
        deadline: float,
        left: float,
        meter: CalledMeter,
    ) -> Pending:
        channel = self._channel
        if channel.error is not None:
            raise lost_call(channel.error, may_have_run=False)
        if left <= 0:
            raise DeadlineError("the deadline passed before the call was sent")
        call = self._next
        trace = trace_id.get()
        message = m.Call(call, service, method.name, left, arguments, (), False, trace)
        try:
            views: Sequence[memoryview] = ()
            if nbytes := self._control.post(message):
                meter.bytes_out += nbytes - meter.around - m.size_of_id(call) - len(trace)
            else:
                value, views, spilled = packed = self._encoder.pack(arguments)
                self._control.send(
                    m.Call(call, service, method.name, left, value, packed.sizes, spilled, trace)
                )
                meter.bytes_out += len(value)
        except ENCODE_ERRORS as error:
            raise BadArgumentsError(f"{method.name}(): {error}") from None
        self._next = call + 1
        pending = self._pending[call] = Pending(call, self._loop.create_future(), deadline, meter)
        if views:
            pending.sender = BodySender(channel, m.Body(call, False), views, meter)
            channel.sending.start_body(pending.sender)
        if deadline < self._sweep.armed:
            self._sweep.arm(deadline)
        return pending

    def _expire(self, now: float) -> float:
        """Settle what is due; the next deadline."""
        following = math.inf
        for pending in tuple(self._pending.values()):
            if pending.deadline > now:
                following = min(following, pending.deadline)
            else:
                text = "the deadline passed before the call had an outcome"
                pending.settle(DeadlineError(text))
        return following

    def _decode(self, method: MethodSpec, result: m.Result, pending: Pending) -> Any:
        body = pending.body
        views = body.views() if body is not None else ()
        packed = Packed(result.value, views, result.spilled)
        try:
            if method.into:
                decoder = method.result_decoder
                return decoder.unpack_into(packed, method.into, landed=pending.landed)
            return method.result_decoder.unpack(*packed)
        except DECODE_ERRORS as error:
            raise BadResultError(f"{method.name}(): {error}") from None

    def error(self, outcome: m.Failure | LatticaError) -> LatticaError:
        """What a caller sees of a call without a value."""
        if isinstance(outcome, m.Failure):
            return to_error(outcome, self.peer_name)
        return outcome

    @property
    def peer_name(self) -> str:
        """The other end, as people read it."""
        remote = self._channel.link.remote
        return remote.name or remote.peer.short

    def close(self, pending: Pending, settled: bool) -> None:
        """The caller waits for it no more; not `settled`: the other end is told."""
        self._pending.pop(pending.call, None)
        if pending.sender is not None:
            pending.sender.abandon()
        if not settled:
            self._control.send(m.Cancel(pending.call))
        if pending.body is not None and not (settled and pending.result):
            pending.body.abandon()

    # ------------------------------------------------------------ from the link

    def flushed(self) -> None:
        """All calls made so far have been written to the link."""
        self._written = self._next

    def result(self, message: m.Result) -> None:
        """A call has returned."""
        pending = self._pending.get(message.call)
        if pending is None:
            if message.call >= self._next:
                raise FrameError("the result of a call never made")
            return  # cancelled meanwhile
        if pending.items is not None or pending.result is not None:
            raise FrameError("a second outcome of one call")
        if not message.sizes:
            if pending.sender is None:
                del self._pending[message.call]
            if not (future := pending.future).done():
                future.set_result(message)
            return
        if sum(message.sizes) > self._channel.config.max_body:
            pending.settle(BadResultError("the result is larger than max_body"))
            return
        # Its value refers to a whole frame, which must not stay as long as the body takes.
        pending.result = message = m.Result(
            message.call, message.value.copy(), message.sizes, message.spilled
        )
        if pending.body is None:
            pending.body = BodyReceiver(self._channel)

        def done(problem: str) -> None:
            pending.settle(StreamTruncatedError(problem) if problem else message)

        into = self._landing(pending, message)
        pending.body.announce(message.sizes, done, pending.meter, into)

    def _landing(self, pending: Pending, message: m.Result) -> list[memoryview]:
        """Where the buffers of a result go as they arrive, if each has its destination."""
        if message.spilled or len(message.sizes) != len(pending.into):
            return []  # which goes where is known once the message is decoded
        pairs = list(zip(pending.into, message.sizes, strict=True))
        if any(size > target.nbytes for target, size in pairs):
            return []
        pending.landed = True
        return [target[:size] for target, size in pairs]

    def failure(self, message: m.Failure) -> None:
        """A call has failed."""
        pending = self._pending.get(message.call)
        if pending is not None:
            pending.settle(message)
        elif message.call >= self._next:
            raise FrameError("the failure of a call never made")

    def claim(self, header: m.Header, stream: int) -> Sink | None:
        """The sink of a result's body or items."""
        pending = self._pending.get(header.call)
        if pending is None:
            if header.call >= self._next:
                raise FrameError("data for a call never made")
            return None
        if isinstance(header, m.Items):
            if pending.items is None:
                raise FrameError("items for a call that returns one value")
            if pending.items.outcome is not None:
                return None  # its deadline has passed in this turn of the loop
            pending.items.attach(stream)
            return pending.items
        if pending.items is not None:
            raise FrameError("a body for a call that returns items")
        if pending.body is None:
            pending.body = BodyReceiver(self._channel)
        pending.body.attach(stream)
        return pending.body

    def lost(self, error: LinkError) -> None:
        """The link is gone: every call has its outcome now."""
        self._sweep.close()
        for pending in tuple(self._pending.values()):
            # Without its whole body the handler was never started.
            sent = pending.call < self._written and (
                pending.sender is None or pending.sender.is_written
            )
            pending.settle(lost_call(error, may_have_run=sent))
