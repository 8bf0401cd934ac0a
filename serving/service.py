"""What a volunteer offers to the mesh, as RPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from lattica.errors import LatticaError
from lattica.identity.keys import PeerId
from lattica.rpc import Buffer, caller, method
from serving.errors import SessionGoneError, SpanError
from serving.messages import Event, Failed, Opening, SessionId, StageInfo
from serving.ring import Ring
from serving.span import Span


class Holder(Protocol):
    """What stands behind the service: a volunteer."""

    @property
    def info(self) -> StageInfo:
        """What is offered now."""
        ...

    def admit(self, opening: Opening, client: PeerId) -> Ring:
        """Open a session; it works until `Ring.close`."""
        ...

    def find(self, session: SessionId) -> Ring | None:
        """The open session of that id."""
        ...

    async def connect(self, peer: PeerId) -> None:
        """Make sure that a peer can be called."""
        ...

    async def take_span(self, model: str, span: Span) -> StageInfo:
        """Load and serve a span."""
        ...


class StageService:
    """Sessions, their steps, and requests to take over a span."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder

    @method()
    async def info(self) -> StageInfo:
        """What this volunteer offers now. An answer also proves that it is alive."""
        return self._holder.info

    @method()
    async def take_span(self, model: str, span: Span) -> StageInfo:
        """Serve a span from now on; returns once it is loaded.

        Raises:
            BusyError: another span is being loaded.
            UnknownModelError, SpanError, WeightsError: it cannot be served here.
        """
        return await self._holder.take_span(model, span)

    @method()
    async def session(self, opening: Opening) -> AsyncIterator[Event]:
        """Open a session and hear of it. The session lasts as long as this stream.

        Yields `Opened` first; the last stage yields each `Token`, any stage a `Failed`.

        Raises:
            BusyError: no room now.
            SpanError, UnknownModelError, ContextTooLongError: not possible here.
        """
        ring = self._holder.admit(opening, caller().peer)
        try:
            try:
                await self._holder.connect(ring.following)
            except LatticaError as error:
                yield Failed(ring.following, f"{type(error).__name__}: {error}")
                return
            async for event in ring.events:
                yield event
        finally:
            ring.close()

    @method()
    async def prompt(self, session: SessionId, tokens: list[int]) -> None:
        """Start a session at its first stage, after every stage has opened it.

        Raises:
            SessionGoneError, PositionError.
        """
        ring = self._find(session)
        self._expect(ring.client)
        ring.prompt(tokens)

    @method()
    async def step(
        self, session: SessionId, position: int, tokens: int, last: bool, data: Buffer
    ) -> None:
        """Take over activations [tokens, hidden] in the model's dtype from the stage before.

        Returns as soon as they are queued. `last`: sample after them.

        Raises:
            SessionGoneError, PositionError.
        """
        ring = self._find(session)
        self._expect(ring.previous)
        ring.step(position, tokens, last, data.data)

    @method()
    async def advance(self, session: SessionId, position: int, token: int) -> None:
        """Take over the token that the last stage chose, at the first stage.

        Raises:
            SessionGoneError, PositionError.
        """
        ring = self._find(session)
        self._expect(ring.previous)
        ring.advance(position, token)

    @method()
    async def progress(self, session: SessionId) -> int:
        """Tokens of a session that this stage has computed.

        Raises:
            SessionGoneError.
        """
        ring = self._find(session)
        self._expect(ring.client)
        return ring.progress

    def _find(self, session: SessionId) -> Ring:
        ring = self._holder.find(session)
        if ring is None:
            raise SessionGoneError(
                "this stage holds no such session: it was closed, or idle for too long"
            )
        return ring

    def _expect(self, peer: PeerId) -> None:
        if caller().peer != peer:
            raise SpanError("the call does not come from the session's own ring")
