"""A volunteer: holds some layers of a model for the mesh, or stands by to take over."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Literal

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import psutil
import torch

from lattica.clock import Clock, SystemClock
from lattica.errors import BusyError, LatticaError
from lattica.identity.keys import PeerId
from serving.background import background
from serving.config import ServingConfig
from serving.errors import ServingError, SpanError, UnknownModelError
from serving.loading import ModelFolder
from serving.messages import SERVICE, Opening, SessionId, StageInfo, State
from serving.ports import MeshPeer
from serving.reach import ask_info
from serving.ring import NextStage, Ring
from serving.roster import Roster
from serving.routing import choose_among
from serving.service import StageService
from serving.source import ModelSource
from serving.span import Span
from serving.stage import Stage

MAX_CLAIMS = 32  # rounds of choosing; each settles at least one volunteer
Layers = Span | Literal["auto", "standby"]
log = logging.getLogger("serving.volunteer")


class Volunteer:
    """Serves a span of one model, or stands by. An async context manager."""

    def __init__(
        self,
        peer: MeshPeer,
        source: Path | str,
        *,
        layers: Layers = "auto",
        name: str | None = None,
        capacity: int | None = None,
        config: ServingConfig | None = None,
        clock: Clock | None = None,
        on_change: Callable[[StageInfo], None] = lambda _: None,
    ) -> None:
        """`source`: a model folder, an id of its files as `lattica blocks add` prints it, or the
        name of a model that the mesh serves already.

        `name`: how the model is called; the folder's name, or the id, if None. `capacity`: layers
        held at most; what fits into memory if None. `on_change` hears of every new state.
        """
        self.config = config or ServingConfig()
        self.provided: dict[str, int] = {}  # bytes fetched, by the provider's PeerId
        self._peer = peer
        self._me = peer.identity.peer_id
        self._source = ModelSource(peer, source, name=name)
        self._layers = layers
        self._capacity = capacity
        self._clock = clock or SystemClock()
        self._on_change = on_change
        self._loading = anyio.Lock()
        self._rings: dict[SessionId, Ring] = {}
        self._ended = anyio.Event()  # replaced each time a session has ended
        self._stage: Stage | None = None
        self._gone = False
        self._folder: ModelFolder
        self._roster: Roster
        self._tasks: anyio.abc.TaskGroup
        self._info: StageInfo

    async def __aenter__(self) -> Volunteer:
        """Get the model, load the span (if any) and enter the roster.

        Raises:
            ModelDirError, WeightsError, UnsupportedModelError: the folder cannot be served.
            UnknownModelError: the mesh has no model of that name.
            SpanError: the model has no such layers.
        """
        torch.set_num_threads(self.config.threads)
        async with contextlib.AsyncExitStack() as stack:
            self._roster = await Roster.open(self._peer, self.config)
            self._folder = await self._source.open(self._roster)
            if isinstance(self._layers, Span):
                self._layers.check(self._folder.layers)
            self._info = StageInfo(
                model=self._source.name,
                manifest=self._source.manifest,
                layers=self._folder.layers,
                state="loading",
                capacity=self._capacity or fitting_layers(self._folder, self.config.dtype),
                name=self._peer.name,
                context=self._folder.context,
            )
            self._tasks = await stack.enter_async_context(background())
            self._peer.serve(SERVICE, StageService(self))
            stack.callback(self._leave)
            await self._take_place()
            self._tasks.start_soon(self._expire_forever)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Leave the roster and end every session."""
        return await self._stack.__aexit__(exc_type, exc, traceback)

    @property
    def info(self) -> StageInfo:
        """What is offered now."""
        if self._gone:
            raise UnknownModelError(f"{self._peer.name} no longer volunteers")
        if self._stage is None:
            return self._info
        return msgspec.structs.replace(
            self._info, kv_free=self._stage.kv_free, sessions=self._stage.sessions
        )

    @property
    def model_directory(self) -> Path:
        """Where the model's files are on this machine."""
        return self._folder.directory

    def admit(self, opening: Opening, client: PeerId) -> Ring:
        """Open a session and start its work; see `StageService.session`."""
        stage, hop = self._stage, _own_hop(opening, self._me)
        if stage is None or opening.manifest != self._info.manifest:
            raise UnknownModelError(f"{self._peer.name} serves no layers of {opening.model!r} now")
        stage.open(opening.session, hop, opening.limit)
        ring = Ring(
            opening, stage, me=self._me, client=client, reach=self._reach, config=self.config
        )
        self._rings[opening.session] = ring
        self._tasks.start_soon(self._work, ring)
        return ring

    def find(self, session: SessionId) -> Ring | None:
        """The open session of that id."""
        return self._rings.get(session)

    async def connect(self, peer: PeerId) -> None:
        """Link with another stage before a session needs it.

        Raises:
            LinkError, RpcError: it does not answer.
        """
        if peer != self._me and self._peer.rpc.links.find(peer) is None:
            await ask_info(self._peer, peer, self.config.hop_timeout)

    async def idle(self) -> None:
        """Wait until no session is open here."""
        while self._rings:
            await self._ended.wait()

    async def take_span(self, model: str, span: Span) -> StageInfo:
        """Load and serve a span; on standby this replaces a stage that is gone.

        Raises:
            BusyError: another span is being loaded, or this volunteer serves another one.
            UnknownModelError, SpanError, WeightsError: it cannot be served here.
        """
        if model != self._info.model:
            raise UnknownModelError(f"{self._peer.name} volunteers for {self._info.model!r} only")
        span.check(self._folder.layers)
        async with self._loading:
            held = self._info.span if self._stage is not None else None
            if held is not None and held.covers(span):
                return self.info
            if held is not None:
                raise BusyError(
                    f"{self._peer.name} serves layers {held} already",
                    retry_after=self.config.busy_retry,
                )
            await self._load(span)
        return self.info

    def expire(self) -> int:
        """Close the sessions that were idle for too long; how many."""
        if self._stage is None:
            return 0
        gone = self._stage.expired()
        for session in gone:
            ring = self._rings.get(session)
            if ring is not None:
                ring.fail(self._me, f"idle for {self.config.session_idle:.0f} s")
                ring.end()
        return len(gone)

    async def _take_place(self) -> None:
        layers = self._layers
        if layers == "auto":
            chosen = await self._choose()
        else:
            chosen = layers if isinstance(layers, Span) else None
        self.provided = await self._source.fetch_weights(self._folder, chosen)
        if chosen is not None:
            async with self._loading:
                await self._load(chosen)
            return
        # Code paths and pages are warm before they are needed: a take-over must be quick.
        await anyio.to_thread.run_sync(self._folder.load, Span(0, 1), self.config.dtype)
        self._change(msgspec.structs.replace(self._info, state="standby"))

    async def _choose(self) -> Span | None:
        """Claim a span and hold it until no one's claim speaks against it; None: stand by."""
        claimed: Span | None = None
        for _ in range(MAX_CLAIMS):
            others = await self._roster.live(self._info.model, avoid=[self._me])
            span = choose_among(self._folder.layers, others, self._info.capacity, me=self._me)
            if span is None or span == claimed:
                break
            claimed = span
            self._change(msgspec.structs.replace(self._info, state="choosing", span=span))
            # Those that start at the same moment must see each other's claims.
            await anyio.sleep(self.config.claim_settle)
        state: State = "fetching" if span is not None else "loading"
        self._change(msgspec.structs.replace(self._info, state=state, span=span))
        return span

    async def _load(self, span: Span) -> None:
        before = self._info
        self._change(msgspec.structs.replace(before, state="loading", span=span))
        try:
            started = self._clock.monotonic()
            model = await anyio.to_thread.run_sync(self._folder.load, span, self.config.dtype)
        except ServingError:
            self._change(before)
            raise
        self._stage = Stage(
            model, context=self._folder.context, config=self.config, clock=self._clock
        )
        self._change(msgspec.structs.replace(before, state="serving", span=span))
        log.info(
            "%s serves layers %s of %s (%.1f MB) after %.0f ms",
            self._peer.name,
            span,
            before.model,
            model.nbytes / 1e6,
            1000 * (self._clock.monotonic() - started),
        )

    def _change(self, info: StageInfo) -> None:
        self._info = info
        self._roster.publish(info)
        self._on_change(info)

    def _reach(self, peer: PeerId) -> NextStage:
        return self._peer.client(peer, StageService, SERVICE, timeout=self.config.hop_timeout)

    async def _work(self, ring: Ring) -> None:
        try:
            await ring.work()
        finally:
            if self._rings.get(ring.session) is ring:
                del self._rings[ring.session]
            self._ended.set()
            self._ended = anyio.Event()

    async def _expire_forever(self) -> None:
        while True:
            await anyio.sleep(self.config.session_idle / 4)
            self.expire()

    def _leave(self) -> None:
        self._gone = True
        for ring in tuple(self._rings.values()):
            ring.fail(self._me, f"{self._peer.name} leaves")
            ring.end()
        self._peer.rpc.unregister(SERVICE)
        try:
            self._roster.withdraw()
        except LatticaError as error:
            log.warning("the roster keeps our entry: %s", error)  # nobody will see it answered


def _own_hop(opening: Opening, me: PeerId) -> Span:
    """The layers that `opening` asks of this peer.

    Raises:
        SpanError: the route does not lead from layer to layer, or not here.
    """
    route: Sequence[Span] = [hop.span for hop in opening.route]
    joined = all(one.end == other.start for one, other in pairwise(route))
    if len(opening.session) != 16 or not 0 <= opening.index < len(route) or not joined:
        raise SpanError("the session's route does not lead from layer to layer")
    hop = opening.route[opening.index]
    if hop.peer != me or route[0].start != 0:
        raise SpanError("the session's route does not pass here")
    return hop.span


def fitting_layers(folder: ModelFolder, dtype: str) -> int:
    """Layers that fit into half of the memory that is free now; at least one."""
    sizes = [(folder.directory / name).stat().st_size for name in folder.present_weights()]
    if not sizes:
        return folder.layers
    growth = 2.0 if dtype == "float32" else 1.0  # most checkpoints hold 16-bit values
    per_layer = max(1.0, growth * sum(sizes) / folder.layers)
    return max(1, min(folder.layers, int(psutil.virtual_memory().available / 2 / per_layer)))
