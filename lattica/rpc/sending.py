"""The data streams that one end sends: places for them, and bodies that wait for one."""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from lattica.config import MIB
from lattica.errors import LinkLostError
from lattica.rpc import messages as m
from lattica.rpc.credit import Allowance
from lattica.rpc.framing import frame
from lattica.rpc.interface import Body, Source, Wire

SENDING = 16 * MIB  # bytes of bodies that may wait in the link's queue
_encode = msgspec.msgpack.Encoder().encode


class Sending:
    """Opens data streams, and passes credit on to their sources."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._loop = asyncio.get_running_loop()
        self._allowance = Allowance()
        self.window = m.INITIAL_CREDIT  # of each new stream, until the other end's hello
        self._streams = wire.config.max_streams_per_peer  # that the other end takes at a time
        self._sources: dict[int, Source] = {}
        self._bodies: deque[Body] = deque()  # wait for a place
        self.waiting_bytes = 0  # of these bodies
        self._started: dict[int, int] = {}  # streams of bodies and the bytes they may queue
        self._started_bytes = 0
        self._placeless: deque[asyncio.Future[None]] = deque()  # item streams to be opened

    @property
    def is_writing(self) -> bool:
        """Whether streams are open, or wait to be."""
        return bool(self._bodies or self._sources)

    def greeted(self, hello: m.Hello) -> None:
        """The other end says what it takes."""
        self.window = min(max(m.INITIAL_CREDIT, hello.window), m.MAX_WINDOW)
        self._streams = min(hello.streams, self._wire.config.max_streams_per_peer)
        for source in tuple(self._sources.values()):
            source.grant(self.window)

    def open_source(self, source: Source, header: m.Header) -> int:
        """Open a data stream and write its header. `source` hears of credit from now on."""
        stream = self._wire.link.open_stream(unidirectional=True)
        self._sources[stream] = source
        self._wire.write(stream, frame(_encode(header)))
        return stream

    def close_source(self, stream: int, *, reset: int | None = None) -> None:
        """The stream has been written to its end, or is given up with a reset."""
        if self._sources.pop(stream, None) is None:
            return
        if reset is not None and self._wire.error is None:
            self._wire.link.reset_stream(stream, reset)
        self._free(stream)

    def source(self, stream: int) -> Source | None:
        """What sends on a stream; None: that is over."""
        return self._sources.get(stream)

    def stopped(self, stream: int, code: int) -> None:
        """The other end wants no more of a stream."""
        if (source := self._sources.pop(stream, None)) is not None:
            if self._wire.error is None:
                self._wire.link.reset_stream(stream, code)
            source.stopped(code)
            self._free(stream)

    def check_credit(self, stream: int, limit: int, sent: int) -> None:
        """See `Allowance.check`."""
        self._allowance.check(stream, limit, sent, self.window, self._sources)

    def lost(self) -> None:
        """The link is gone."""
        self._sources.clear()
        self._bodies.clear()
        self.waiting_bytes = 0
        while self._placeless:
            self._give_place()

    # ------------------------------------------------------------------- places

    @property
    def has_place(self) -> bool:
        """Whether one more body may be sent now."""
        return len(self._sources) < self._streams

    @property
    def has_place_for_items(self) -> bool:
        """The same for an item stream: slow ones must leave places to bodies."""
        return len(self._sources) - len(self._started) < self._streams - self._streams // 4

    async def place_for_items(self) -> None:
        """Wait, first come first served, until an item stream may be sent or the link is gone."""
        while not self.has_place_for_items and self._wire.error is None:
            waiter = self._loop.create_future()
            self._placeless.append(waiter)
            try:
                await waiter  # bounded by the deadline of the call that the items are part of
            except asyncio.CancelledError:
                if waiter.done():
                    self._give_place()
                raise

    def _give_place(self) -> None:
        while self._placeless:
            waiter = self._placeless.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _free(self, stream: int) -> None:
        self._started_bytes -= self._started.pop(stream, 0)
        self._start_bodies()
        if self._placeless and self.has_place_for_items:
            self._give_place()

    # ------------------------------------------------------------------- bodies

    def start_body(self, body: Body) -> None:
        """Start `body` when there is room: what waits in the link's queue is bounded."""
        self._bodies.append(body)
        self.waiting_bytes += body.nbytes
        self._start_bodies()

    def _start_bodies(self) -> None:
        while self._bodies and self.has_place and self._wire.error is None:
            body = self._bodies[0]
            cost = min(body.nbytes, self.window)
            if self._started and self._started_bytes + cost > SENDING:
                return
            self._bodies.popleft()
            self.waiting_bytes -= body.nbytes
            if body.is_over:
                continue
            try:
                stream = body.start()
            except LinkLostError as error:  # closed in this turn of the loop
                self._wire.link_lost(error)
                return
            self._started[stream] = cost
            self._started_bytes += cost
