"""Generate over the mesh, and go on when a stage is lost.

The client keeps the prompt and every accepted token. When a stage fails it finds or asks
for a replacement, opens a new session over the new ring and replays them; what is drawn
depends on seed and position alone, so the text is the same as without the fault.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from lattica.errors import BusyError, LatticaError
from lattica.identity.keys import PeerId
from serving.background import background
from serving.config import ServingConfig
from serving.errors import (
    ContextTooLongError,
    NoCoverError,
    StageLostError,
    UnknownModelError,
)
from serving.lap import Lap, StageBusy, StageFailure
from serving.messages import SERVICE, Finish, Hop, StageInfo
from serving.ports import MeshPeer
from serving.roster import Roster
from serving.routing import Live, choose_standbys, find_route, no_cover
from serving.sampling import Sampling
from serving.service import StageService
from serving.span import Span, missing


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to generate."""

    model: str
    prompt: tuple[int, ...]  # token ids
    max_tokens: int
    sampling: Sampling = Sampling()
    eos: tuple[int, ...] = ()


class Started(msgspec.Struct, frozen=True):
    """The ring is complete and has the prompt."""

    route: tuple[Hop, ...]
    names: tuple[str, ...]  # the volunteers' names, in the ring's order


class NewToken(msgspec.Struct, frozen=True):
    """One more token of the answer."""

    index: int  # 0 is the first token of the answer
    token: int
    at_ms: float  # since the request
    finish: Finish = ""


class Replaced(msgspec.Struct, frozen=True):
    """A stage was lost and the answer goes on without it; the next event is its token."""

    lost: PeerId
    lost_name: str
    span: Span
    reason: str
    route: tuple[Hop, ...]  # the new ring
    names: tuple[str, ...]
    after: int  # tokens of the answer that were accepted before
    gap_ms: float  # from the last token before to the first one after


Generated = Started | NewToken | Replaced


class Client:
    """Generates with the models of a mesh."""

    def __init__(self, peer: MeshPeer, roster: Roster, config: ServingConfig | None = None) -> None:
        self.config = config or ServingConfig()
        self._peer = peer
        self._roster = roster

    @classmethod
    async def open(cls, peer: MeshPeer, config: ServingConfig | None = None) -> Client:
        """A client with the peer's roster."""
        return cls(peer, await Roster.open(peer, config), config)

    async def models(self) -> dict[str, list[Live]]:
        """Live volunteers by model; those of gone peers are not in it."""
        found: dict[str, list[Live]] = {}
        for entry in await self._roster.live():
            found.setdefault(entry.info.model, []).append(entry)
        return found

    @asynccontextmanager
    async def generate(self, request: Request) -> AsyncIterator[AsyncIterator[Generated]]:
        """Events of one generation; leaving the context ends it and frees the caches.

        Raises (from the iterator):
            UnknownModelError: nobody serves the model.
            NoCoverError: names the layers that nobody can serve.
            ContextTooLongError: prompt and answer do not fit.
            BusyError: no room now.
            StageLostError: too many stages were lost.
        """
        send, receive = anyio.create_memory_object_stream[Generated | LatticaError](math.inf)
        async with background() as tasks:
            tasks.start_soon(self._run, request, send)
            with receive:
                yield _events(receive)

    async def _run(
        self, request: Request, out: MemoryObjectSendStream[Generated | LatticaError]
    ) -> None:
        with out:
            try:
                await Generation(self, request, out).run()
            except LatticaError as error:
                out.send_nowait(error)
            except anyio.BrokenResourceError:
                return  # nobody listens any more; the body is about to cancel this

    async def ring(
        self, request: Request, avoid: set[PeerId]
    ) -> tuple[tuple[Hop, ...], dict[PeerId, StageInfo]]:
        """A complete ring of live stages, with standbys in the place of missing ones.

        Raises:
            UnknownModelError, NoCoverError.
        """
        try:
            return await self._ring(request, avoid, anew=False)
        except (UnknownModelError, NoCoverError):
            # A volunteer that was out of sight a moment ago may be back.
            return await self._ring(request, avoid, anew=True)

    async def _ring(
        self, request: Request, avoid: set[PeerId], *, anew: bool
    ) -> tuple[tuple[Hop, ...], dict[PeerId, StageInfo]]:
        tokens = len(request.prompt) + request.max_tokens

        def enough(found: list[Live]) -> bool:
            return not missing(found[0].info.layers, _serving(found))

        live = await self._roster.live(request.model, avoid=avoid, enough=enough, anew=anew)
        if not live:
            raise UnknownModelError(await self._unknown(request.model, bool(avoid)))
        layers, manifest = _majority(live)
        live = [entry for entry in live if entry.info.manifest == manifest]
        gaps = missing(layers, _serving(live))
        if gaps:
            live = await self._fill(request.model, layers, gaps, live)
        route = find_route(request.model, layers, live, tokens)
        return route, {entry.peer: entry.info for entry in live}

    async def _fill(
        self, model: str, layers: int, gaps: Sequence[Span], live: list[Live]
    ) -> list[Live]:
        """Ask standbys to take the gaps; the volunteers as they are then."""
        gone: set[PeerId] = set()
        while gaps:
            usable = [entry for entry in live if entry.peer not in gone]
            chosen, left = choose_standbys(gaps, usable)
            if left:
                raise NoCoverError(no_cover(model, layers, left))
            async with anyio.create_task_group() as tasks:
                for entry, span in chosen:
                    tasks.start_soon(self._take, entry, span, live, gone)
            gaps = missing(layers, _serving(live))
        return live

    async def _take(self, entry: Live, span: Span, live: list[Live], gone: set[PeerId]) -> None:
        stub = self._peer.client(
            entry.peer, StageService, SERVICE, timeout=self.config.load_timeout
        )
        gone.add(entry.peer)  # whatever comes of it, it is no standby any more
        try:
            info = await stub.take_span(entry.info.model, span)
        except LatticaError:
            return  # the next standby is asked
        live.append(Live(entry.peer, info, entry.rtt))
        live.remove(entry)

    async def _unknown(self, model: str, lost: bool) -> str:
        if lost:
            return f"every volunteer for {model} is gone"
        known = sorted({entry.info.model for entry in await self._roster.live()})
        there = f"the mesh serves {', '.join(known)}" if known else "no model is served"
        return f"nobody serves a model named {model!r}; {there}"


class Generation:
    """The state of one request: what is accepted, whom to avoid."""

    def __init__(
        self,
        client: Client,
        request: Request,
        out: MemoryObjectSendStream[Generated | LatticaError],
    ) -> None:
        self._client = client
        self._request = request
        self._out = out
        self._accepted: list[int] = []
        self._avoid: set[PeerId] = set()
        self._began = time.perf_counter()
        self._last = self._began  # when the last token came
        self._lost: tuple[StageFailure, Span, str] | None = None
        self._busy: StageBusy | None = None
        self._started = False

    async def run(self) -> None:
        """Lap after lap until the answer is complete."""
        self._check_request()
        failures = 0
        while True:
            route, infos = await self._ring()
            try:
                await self._lap(route, infos)
                return
            except StageFailure as failure:
                failures += 1
                hop = next((hop for hop in route if hop.peer == failure.peer), route[0])
                name = infos[hop.peer].name
                if failures > self._client.config.max_replacements:
                    raise StageLostError(
                        f"gave up after {failures} lost stages; the last was {name}: {failure}"
                    ) from None
                self._avoid.add(failure.peer)
                if isinstance(failure, StageBusy):
                    self._busy = failure
                else:
                    self._lost = self._lost or (failure, hop.span, name)

    async def _ring(self) -> tuple[tuple[Hop, ...], dict[PeerId, StageInfo]]:
        try:
            return await self._client.ring(self._request, self._avoid)
        except (NoCoverError, UnknownModelError):
            if self._busy is None:
                raise
            # The layers are there, but without room: that passes.
            raise BusyError(str(self._busy), retry_after=self._busy.retry_after) from None

    def _check_request(self) -> None:
        if not self._request.prompt:
            raise ContextTooLongError("an empty prompt cannot be continued")
        if self._request.max_tokens < 1:
            raise ContextTooLongError("there is no room for a single token of an answer")

    async def _lap(self, route: tuple[Hop, ...], infos: dict[PeerId, StageInfo]) -> None:
        request, config = self._request, self._client.config
        limit = len(request.prompt) + request.max_tokens
        info = infos[route[0].peer]
        if info.context and limit > info.context:
            raise ContextTooLongError(
                f"prompt ({len(request.prompt)}) and answer ({request.max_tokens}) come to "
                f"{limit} tokens; {request.model} has room for {info.context}"
            )
        names = tuple(infos[hop.peer].name for hop in route)
        lap = Lap(
            self._client._peer,
            config,
            session=secrets.token_bytes(16),
            model=request.model,
            manifest=info.manifest,
            route=route,
            limit=limit,
            sampling=request.sampling,
            eos=request.eos,
        )
        async with lap.running([*request.prompt, *self._accepted]) as tokens:
            if not self._started:
                self._started = True
                self._out.send_nowait(Started(route, names))
            async for token in tokens:
                now = time.perf_counter()
                if self._lost is not None:
                    self._tell_replaced(route, names, now)
                self._out.send_nowait(
                    NewToken(
                        len(self._accepted), token.token, 1000 * (now - self._began), token.finish
                    )
                )
                self._accepted.append(token.token)
                self._last = now

    def _tell_replaced(self, route: tuple[Hop, ...], names: tuple[str, ...], now: float) -> None:
        assert self._lost is not None
        failure, span, name = self._lost
        self._out.send_nowait(
            Replaced(
                failure.peer,
                name,
                span,
                str(failure),
                route,
                names,
                len(self._accepted),
                1000 * (now - self._last),
            )
        )
        self._lost = None


async def _events(
    receive: MemoryObjectReceiveStream[Generated | LatticaError],
) -> AsyncIterator[Generated]:
    async for event in receive:
        if isinstance(event, LatticaError):
            raise event
        yield event


def _serving(live: Sequence[Live]) -> list[Span]:
    return [
        entry.info.span
        for entry in live
        if entry.info.state == "serving" and entry.info.span is not None
    ]


def _majority(live: Sequence[Live]) -> tuple[int, str]:
    """Layers and manifest that most volunteers of a model name: one folder per answer."""
    votes: dict[tuple[int, str], int] = {}
    for entry in live:
        key = (entry.info.layers, entry.info.manifest)
        votes[key] = votes.get(key, 0) + 1
    return max(votes, key=lambda key: (votes[key], key))
