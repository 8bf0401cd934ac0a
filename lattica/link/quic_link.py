"""One link over QUIC, from the first packet to the last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import anyio

from lattica.errors import LinkError, LinkLostError, LinkRefusedError
from lattica.identity.keys import PeerId
from lattica.link.alarm import Alarm
from lattica.link.draining import Draining
from lattica.link.engine import Engine
from lattica.link.inbound import Inbound
from lattica.link.interface import Link, LinkHandler, RemotePeer
from lattica.link.leaving import Leaving
from lattica.link.own_stream import OwnStream
from lattica.link.owner import LinkOwner
from lattica.link.phase import Phase
from lattica.link.proof import Role
from lattica.link.refusals import CloseCode, code_of, error_of
from lattica.link.sending import Sending
from lattica.link.statistics import LinkStatistics, Meter, gather
from lattica.link.steering import Steering
from lattica.link.upcalls import Upcalls
from lattica.link.vitals import Vitals
from lattica.path.addresses import is_local, strip_scheme
from lattica.path.interface import VirtualAddress
from lattica.path.probes import ProbeKeys

logger = logging.getLogger("lattica.link")

HANDSHAKE_LIMIT = 128 * 1024  # bytes received before TLS is done; it takes a few thousand


class QuicLink:
    """See `lattica.link.interface.Link`; joins the parts that one link is made of."""

    def __init__(
        self,
        owner: LinkOwner,
        engine: Engine,
        address: VirtualAddress,
        *,
        role: Role,
        now: float,
        expected: PeerId | None = None,
    ) -> None:
        self._owner = owner
        self._engine = engine
        self._address = address
        self._role = role
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._loop, self._on_timer)
        self._upcalls = Upcalls(self._loop, self.handler_failed)
        self._meter = Meter()
        self._sending = Sending(engine, owner.path, address, self._meter)
        self._outbox = self._sending.outbox
        self._inbound = Inbound(
            self, owner, engine, self._upcalls, self._outbox, role=role, expected=expected
        )
        self._before_flush: Callable[[], None] | None = None
        self._is_flushing = False  # what is written now leaves without another turn
        self.phase = Phase.HANDSHAKE
        self.source = ""  # who is behind the address that dialled; empty where places do not matter
        self.has_shown = False  # that it receives there, before anything was kept for it
        self._born = now
        self._handshake = 0.0
        self.is_closed_here = False  # on purpose, not for a fault
        self.leaving = Leaving(self, owner, self._sending, self._upcalls)
        self.vitals = Vitals(self, owner, engine, self._sending, self._meter, now)
        self.liveness = self.vitals.liveness
        self.error: LinkError | None = None
        self.settled = anyio.Event()  # open or closed

    # ------------------------------------------------------- the Link interface

    @property
    def local(self) -> PeerId:
        return self._owner.identity.peer_id

    @property
    def remote(self) -> RemotePeer:
        remote = self.proven
        assert remote is not None, "a link is handed on only when its peer has proven itself"
        return remote

    @property
    def is_dialer(self) -> bool:
        return self._role is Role.DIALER

    @property
    def is_open(self) -> bool:
        return self.phase is Phase.OPEN

    @property
    def is_draining(self) -> bool:
        own = self._inbound.own
        return self.leaving.has_begun or (own is not None and own.farewell is not None)

    @property
    def rtt(self) -> float:
        return self._engine.rtt

    @property
    def address(self) -> str:
        return self._owner.path.describe(self._sending.address)

    def statistics(self) -> LinkStatistics:
        return gather(
            self._engine,
            self._meter,
            state="draining" if self.is_open and self.is_draining else self.phase.value,
            path=self.address,
            waiting=len(self._outbox),
            age=self._loop.time() - self._born,
            silence=self._loop.time() - self.liveness.heard,
            handshake=self._handshake,
        )

    def open_stream(self, *, unidirectional: bool) -> int:
        self._check_open()
        return self._engine.next_stream_id(unidirectional=unidirectional)

    def write(
        self,
        stream_id: int,
        data: bytes | bytearray | memoryview,
        *,
        end: bool = False,
        lent: bool = False,
    ) -> None:
        if self.phase is not Phase.OPEN:
            self._check_open()
        if not lent and type(data) is not bytes and not _is_frozen(data):
            data = bytes(data)
        self._outbox.write(stream_id, data, end=end)
        if not self._is_flushing:
            self._owner.link_dirty(self)

    def before_flush(self, write: Callable[[], None]) -> None:
        self._before_flush = write
        self._owner.link_dirty(self)

    def reset_stream(self, stream_id: int, code: int) -> None:
        if self.phase is Phase.OPEN:
            self._outbox.drop(stream_id)
            self._engine.reset_stream(stream_id, code)
            self._owner.link_dirty(self)

    def stop_stream(self, stream_id: int, code: int) -> None:
        if self.phase is Phase.OPEN:
            self._engine.stop_stream(stream_id, code)
            self._owner.link_dirty(self)

    def close(self, reason: str = "") -> None:
        text = reason or "closed"
        self.is_closed_here = self.phase is not Phase.CLOSED or self.is_closed_here
        self.end(LinkLostError(f"closed here: {text}"), CloseCode.CLOSED, text)

    async def drain(self, timeout: float, reason: str = "") -> bool:
        return not self.is_open or await self.leaving.run(timeout, reason or "going away")

    # -------------------------------------------------------- for the endpoint

    @property
    def proven(self) -> RemotePeer | None:
        """The other end, once its Hello holds."""
        return None if self._inbound.own is None else self._inbound.own.remote

    @property
    def connection_ids(self) -> set[bytes]:
        """For which packets may arrive."""
        return self._inbound.connection_ids

    @property
    def virtual_address(self) -> VirtualAddress:
        """Where the first packet went: it stands for the other end, whatever way is taken."""
        return self._address

    @property
    def current_address(self) -> VirtualAddress:
        """Where packets go now."""
        return self._sending.address

    @property
    def steering(self) -> Steering | None:
        """Its ways; None before the keys are there."""
        return self._sending.steering

    def path_of(self, address: VirtualAddress) -> str:
        """One of its ways, for people."""
        return self._owner.path.describe(address)

    @property
    def probe_tag(self) -> bytes | None:
        """How probes of the path name this link; None before the keys are there."""
        steering = self._sending.steering
        return None if steering is None else steering.tag

    def dial(self, now: float) -> None:
        """Send the first packet."""
        self._engine.connect(self._address, now)
        self._owner.link_dirty(self)

    def receive(self, datagrams: Sequence[bytes], now: float) -> None:
        """Take in the datagrams of a wake-up; `handle_events` follows.

        To QUIC they come from the one virtual address, whatever path they took.
        """
        self._meter.packets_in += len(datagrams)
        self._meter.bytes_in += sum(map(len, datagrams))
        if self._engine.receive_many(datagrams, self._address, now):
            self.vitals.pulse.on_heard(now)
        if self.phase is Phase.HANDSHAKE and self._meter.bytes_in > HANDSHAKE_LIMIT:
            self.refuse(LinkRefusedError("too much data in the handshake"))

    def handle_events(self) -> None:
        """Act on what has arrived."""
        self._engine.drain(self._inbound)
        if self.phase is not Phase.CLOSED:
            self._owner.link_dirty(self)

    def flush(self, now: float) -> None:
        """Send what waits, as far as congestion control and a fair share of the turn allow."""
        if self.phase is Phase.CLOSED:
            return
        if self._before_flush is not None:
            write, self._before_flush = self._before_flush, None
            self._is_flushing = True
            self._upcalls.event(lambda _: write())
            self._is_flushing = False
            if self.error is not None:
                return
        if not self._sending.push(now):
            self._owner.link_dirty(self)
        self.leaving.flushed()
        self.vitals.written(now)
        self._alarm.set(self._engine.timer())

    def answer(self) -> None:
        """Accept a proven dialer."""
        self._own.introduce()

    def confirm(self) -> None:
        """Accept a proven acceptor."""
        self._own.confirm()

    def open(self, acceptor: Callable[[Link], LinkHandler]) -> None:
        """Both proofs hold: hand over what has arrived meanwhile, then everything else."""
        self.phase = Phase.OPEN  # first: the acceptor may open streams
        now = self._loop.time()
        self._handshake = now - self._born
        self.vitals.opened(now, expires=self._own.expires)
        handler = acceptor(self)
        self.vitals.handled(handler, is_local=is_local(strip_scheme(self.address)))
        self.settled.set()
        self._upcalls.begin(handler)

    def say_farewell(self, draining: Draining) -> None:
        """Tell the other end that this one leaves; see `Leaving`."""
        self.is_closed_here = True
        self._own.leave(draining)

    def on_too_big(self, address: VirtualAddress, size: int) -> None:
        """This machine does not send so large a datagram there: go on with the smallest."""
        if self.phase is not Phase.CLOSED and address == self._sending.address:
            self._sending.too_big(size, self._loop.time())
            self._owner.link_dirty(self)

    def refuse(self, error: LinkError) -> None:
        """Close with a typed reason."""
        self.end(error, code_of(error), str(error))

    def end(self, error: LinkError, code: CloseCode, reason: str) -> None:
        """Close from this end."""
        if self.phase is Phase.CLOSED:
            return
        now = self._loop.time()
        self.flush(now)
        self._engine.close(code, reason)
        self._finish(error, self._sending.send_rest(now))

    # ---------------------------------------------------------- for its inbound

    def keyed(self, binding: bytes) -> bytes:
        """TLS is done. The id under which beats arrive."""
        self.phase = Phase.PROVING
        owner = self._owner
        self._sending.steer(
            ProbeKeys.derive(binding, is_dialer=self.is_dialer),
            is_dialer=self.is_dialer,
            limit=owner.config.max_datagram,
            counters=owner.counters,
        )
        return self.vitals.keyed(binding)

    def closed(self, code: int | None, reason: str) -> None:
        """The engine has ended the connection."""
        if self.phase is Phase.CLOSED:
            return
        # Where this end found the fault, the engine has a close to send.
        last_words = self._sending.send_rest(self._loop.time())
        self._finish(error_of(code, reason, is_open=self.is_open), last_words)

    def handler_failed(self) -> None:
        """A bug above must not cost other links their packets."""
        logger.exception("the handler of the link to %s failed", self.remote.peer.short)
        self.close("internal error")

    # ------------------------------------------------------------------ inside

    def _check_open(self) -> None:
        if self.phase is not Phase.OPEN:
            name = self.proven.peer.short if self.proven else "the other end"
            raise LinkLostError(f"the link to {name} is closed")

    @property
    def _own(self) -> OwnStream:
        """The link's own stream; it is there once TLS is done."""
        own = self._inbound.own
        assert own is not None
        return own

    def _on_timer(self) -> None:
        if self.phase is Phase.CLOSED:
            return
        now = self._loop.time()
        at = self._engine.timer()
        if at is not None and at <= now:
            self._engine.handle_timer(now)
            self._engine.drain(self._inbound)
            self.flush(now)
        else:
            self._alarm.set(at)

    def _finish(self, error: LinkError, last_words: list[bytes]) -> None:
        self.phase = Phase.CLOSED
        self.error = error
        self._alarm.cancel()
        self.leaving.finish()
        self._outbox.clear()
        self.settled.set()
        self._owner.link_ended(self, last_words)
        if self._sending.steering is not None:
            self._sending.steering.end()
        self._engine.finish()
        self._upcalls.finish(error)


def _is_frozen(data: object) -> bool:
    """Whether nobody can change it: a view of bytes, so that no copy is needed."""
    return type(data) is memoryview and type(data.obj) is bytes
