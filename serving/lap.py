"""One ring of one session, as the client runs it, until the answer ends or a stage fails."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from lattica.errors import BusyError, LatticaError, StreamTruncatedError
from lattica.identity.keys import PeerId
from lattica.rpc.doubts import Doubts
from serving.background import background
from serving.config import ServingConfig
from serving.errors import ContextTooLongError, RequestError, ServingError
from serving.messages import SERVICE, Event, Failed, Hop, Opened, Opening, SessionId, Token
from serving.ports import MeshPeer
from serving.sampling import Sampling
from serving.service import StageService


class StageFailure(ServingError):  # noqa: N818 - the event, told to people by other errors
    """A stage of the ring failed; `peer` is the one to avoid."""

    def __init__(self, peer: PeerId, reason: str) -> None:
        super().__init__(reason)
        self.peer = peer


_Heard = tuple[int, Event | LatticaError]


class Lap:
    """Opens a session at every stage, starts it, and listens."""

    def __init__(
        self,
        peer: MeshPeer,
        config: ServingConfig,
        *,
        session: SessionId,
        model: str,
        manifest: str,
        route: tuple[Hop, ...],
        limit: int,
        sampling: Sampling,
        eos: tuple[int, ...],
    ) -> None:
        self._peer = peer
        self._config = config
        self._openings = [
            Opening(session, model, manifest, route, index, limit, sampling, eos)
            for index in range(len(route))
        ]
        self._route = route
        self._session = session

    @asynccontextmanager
    async def running(self, tokens: list[int]) -> AsyncIterator[AsyncIterator[Token]]:
        """Start with `tokens`; the tokens that follow. Leaving closes the session everywhere.

        Raises:
            StageFailure: names the stage to avoid.
            ContextTooLongError: the stages have no room for so long a session.
            RequestError: a token is not in the vocabulary.
        """
        send, receive = anyio.create_memory_object_stream[_Heard](math.inf)
        patience = self._config.suspect_patience
        async with background() as tasks:
            with send, receive, Doubts(self._peer.rpc.links, patience) as doubts:
                for opening in self._openings:
                    tasks.start_soon(self._listen, opening, send.clone(), doubts)
                await self._all_opened(receive)
                await self._start(tokens)
                yield self._tokens(receive, len(tokens))

    async def _listen(
        self, opening: Opening, out: MemoryObjectSendStream[_Heard], doubts: Doubts
    ) -> None:
        """Pass on what one stage says, its end and its loss included."""
        index = opening.index
        stub = self._peer.client(
            self._route[index].peer, StageService, SERVICE, timeout=self._config.open_timeout
        )
        stream: Any = stub.session(opening)
        end: LatticaError = StreamTruncatedError("the stage ended the session")
        with out, contextlib.suppress(anyio.BrokenResourceError):  # nobody listens any more
            try:
                with doubts.waiting(self._route[index].peer):
                    async for event in stream:
                        out.send_nowait((index, event))
            except LatticaError as error:
                end = error
            finally:
                with anyio.CancelScope(shield=True):
                    await stream.aclose()
            out.send_nowait((index, end))

    async def _all_opened(self, heard: MemoryObjectReceiveStream[_Heard]) -> None:
        waiting = set(range(len(self._route)))
        try:
            with anyio.fail_after(self._config.open_timeout):
                while waiting:
                    index, event = await heard.receive()
                    if not isinstance(event, Opened):
                        raise self._failure(index, event)
                    waiting.discard(index)
        except TimeoutError:
            peer = self._route[min(waiting)].peer
            raise StageFailure(peer, "did not open the session in time") from None

    async def _start(self, tokens: list[int]) -> None:
        first = self._route[0].peer
        stub = self._peer.client(first, StageService, SERVICE, timeout=self._config.hop_timeout)
        try:
            await stub.prompt(self._session, tokens)
        except RequestError:
            raise
        except LatticaError as error:
            raise StageFailure(first, f"{type(error).__name__}: {error}") from None

    async def _tokens(
        self, heard: MemoryObjectReceiveStream[_Heard], position: int
    ) -> AsyncIterator[Token]:
        last = len(self._route) - 1
        while True:
            index, event = await self._hear(heard)
            if not isinstance(event, Token):
                raise self._failure(index, event)
            if index != last or event.position != position:
                raise StageFailure(self._route[index].peer, "sent a token out of turn")
            position += 1
            yield event
            if event.finish:
                return

    async def _hear(self, heard: MemoryObjectReceiveStream[_Heard]) -> _Heard:
        """The next word of any stage. Silence is fine while the stages get on."""
        before: list[int] = []
        while True:
            with anyio.move_on_after(self._config.token_timeout):
                return await heard.receive()
            now = await self._progress()
            if min(now) < 0 or now == before:
                slowest = min(range(len(now)), key=lambda at: now[at])
                raise StageFailure(
                    self._route[slowest].peer,
                    f"no token and no progress within {self._config.token_timeout:.0f} s",
                )
            before = now

    def _failure(self, index: int, event: Event | LatticaError) -> LatticaError:
        peer = self._route[index].peer
        if isinstance(event, Failed):
            known = any(hop.peer == event.peer for hop in self._route)
            return StageFailure(event.peer if known else peer, event.reason)
        if isinstance(event, ContextTooLongError):
            return event
        if isinstance(event, BusyError):
            return StageBusy(peer, str(event), retry_after=event.retry_after)
        if isinstance(event, LatticaError):
            return StageFailure(peer, f"{type(event).__name__}: {event}")
        return StageFailure(peer, f"said {type(event).__name__} out of turn")

    async def _progress(self) -> list[int]:
        """Tokens that each stage has computed; -1 for one that does not answer."""
        progress = [-1] * len(self._route)

        async def ask(index: int) -> None:
            stub = self._peer.client(
                self._route[index].peer, StageService, SERVICE, timeout=self._config.probe_timeout
            )
            with contextlib.suppress(LatticaError):
                progress[index] = await stub.progress(self._session)

        async with anyio.create_task_group() as tasks:
            for index in range(len(self._route)):
                tasks.start_soon(ask, index)
        return progress


class StageBusy(StageFailure):
    """A stage has no room now."""

    def __init__(self, peer: PeerId, reason: str, *, retry_after: float) -> None:
        super().__init__(peer, reason)
        self.retry_after = retry_after
