"""What a link's engine tells: to its own stream, or to the handler, or the end of it all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lattica.errors import LinkError, LinkLostError, LinkRefusedError
from lattica.identity.keys import PeerId
from lattica.link.engine import Engine
from lattica.link.interface import LinkHandler
from lattica.link.outbox import Outbox
from lattica.link.own_stream import OWN_STREAM, OwnStream, Said
from lattica.link.owner import LinkOwner
from lattica.link.phase import Phase
from lattica.link.proof import Proof, Role
from lattica.link.upcalls import Upcalls

if TYPE_CHECKING:
    from lattica.link.quic_link import QuicLink


class Inbound:
    """The sink of a link's engine (`lattica.link.engine.EngineSink`).

    Attributes:
        connection_ids: for which packets may arrive.
        own: the link's own stream, once TLS is done.
    """

    __slots__ = (
        "_engine",
        "_expected",
        "_link",
        "_outbox",
        "_owner",
        "_role",
        "_upcalls",
        "connection_ids",
        "own",
    )

    def __init__(
        self,
        link: QuicLink,
        owner: LinkOwner,
        engine: Engine,
        upcalls: Upcalls,
        outbox: Outbox,
        *,
        role: Role,
        expected: PeerId | None,
    ) -> None:
        """`expected` is the peer that was dialled, `role` this end's."""
        self._link = link
        self._owner = owner
        self._engine = engine
        self._upcalls = upcalls
        self._outbox = outbox
        self._role = role
        self._expected = expected
        self.connection_ids: set[bytes] = set(engine.connection_ids)
        self.own: OwnStream | None = None

    def handshake_done(self) -> None:
        link, owner = self._link, self._owner
        binding = self._engine.binding()
        self.connection_id_added(link.keyed(binding))
        owner.link_keyed(link)
        proof = Proof(
            owner.identity,
            owner.membership,
            owner.name,
            role=self._role,
            binding=binding,
            expected=self._expected,
        )
        self.own = OwnStream(proof, self._say)
        if self._role is Role.DIALER:
            stream_id = self._engine.next_stream_id(unidirectional=False)
            assert stream_id == OWN_STREAM
            self.own.introduce()

    def stream_data(self, stream_id: int, data: bytes, end: bool) -> None:
        if stream_id == OWN_STREAM:
            self._own_data(data, end)
            return
        handler = self._upcalls.handler
        if handler is None:
            self._event(lambda handler: handler.stream_data(stream_id, data, end), len(data))
            return
        try:
            handler.stream_data(stream_id, data, end)
        except Exception:  # noqa: BLE001
            self._link.handler_failed()

    def stream_reset(self, stream_id: int, code: int) -> None:
        self._event(lambda handler: handler.stream_reset(stream_id, code))

    def stream_stopped(self, stream_id: int, code: int) -> None:
        self._outbox.drop(stream_id)
        self._event(lambda handler: handler.stream_stopped(stream_id, code))

    def connection_id_added(self, connection_id: bytes) -> None:
        self.connection_ids.add(connection_id)
        self._owner.connection_id_added(self._link, connection_id)

    def connection_id_removed(self, connection_id: bytes) -> None:
        self.connection_ids.discard(connection_id)
        self._owner.connection_id_removed(self._link, connection_id)

    def closed(self, code: int | None, reason: str) -> None:
        self._link.closed(code, reason)

    # ------------------------------------------------------------------ inside

    def _say(self, data: bytes) -> None:
        """Write on the link's own stream."""
        self._engine.send(OWN_STREAM, data, end=False)
        self._owner.link_dirty(self._link)

    def _own_data(self, data: bytes, end: bool) -> None:
        link, owner = self._link, self._owner
        if link.phase is Phase.CLOSED:
            return
        if self.own is None:
            link.refuse(LinkRefusedError("bytes on the link's own stream before TLS is done"))
            return
        try:
            for said in self.own.receive(data, end, owner.clock.time()):
                if said is Said.HELLO:
                    link.phase = Phase.PROVEN
                    owner.link_proven(link)
                elif said is Said.CONFIRM:
                    owner.link_confirmed(link)
                else:
                    text = f"the other end is leaving: {self.own.farewell}"
                    owner.link_draining(link, LinkLostError(text))
                if link.phase is Phase.CLOSED:
                    return
        except LinkError as error:
            link.refuse(error)

    def _event(self, event: Callable[[LinkHandler], None], size: int = 0) -> None:
        if not self._upcalls.event(event, size):
            self._link.refuse(LinkRefusedError("too much data before the proof"))
