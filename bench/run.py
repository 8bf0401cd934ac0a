"""One run of the measurements: its options, and the peers that its measures share."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType

import msgspec

from bench import grpc_peer, mesh
from bench.floor import FloorClient
from bench.processes import Other, other
from bench.rows import Measure, medians, tell
from bench.servers import FloorWhere
from lattica.identity import wire
from lattica.identity.keys import Identity


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to measure."""

    engines: tuple[str, ...]
    rounds: int = 5
    seconds: float = 1.0  # of each timed part of a round
    uvloop: bool = False


class Run:
    """Starts what measures ask for, once, and ends it all. An async context manager."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.engines = options.engines
        self.rounds = options.rounds
        self.seconds = options.seconds
        self.seed = secrets.token_bytes(32)
        self.authority = Identity(self.seed)
        self._stack = contextlib.AsyncExitStack()
        self._servers: dict[tuple[str, str], mesh.Where] = {}
        self._clients: dict[tuple[str, str], mesh.Client] = {}
        self._grpc: grpc_peer.Client | None = None
        self._grpc_where: grpc_peer.Where | None = None
        self._floor: FloorClient | None = None
        self._started = time.monotonic()

    async def __aenter__(self) -> Run:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    # ------------------------------------------------------------- what is shared

    async def clients(self, path: str = "auto") -> list[mesh.Client]:
        """A client of each engine, linked to a server in a process of its own."""
        return [await self.client(engine, path) for engine in self.engines]

    async def client(self, engine: str, path: str = "auto") -> mesh.Client:
        """A client linked to a server in a process of its own."""
        found = self._clients.get((engine, path))
        if found is None:
            where, config = await self.where(engine, path), mesh.link_config(engine, path)
            enter = self._stack.enter_async_context
            found = await enter(mesh.client(self.authority, where, config, kind=path))
            self._clients[engine, path] = found
        return found

    async def where(self, engine: str, path: str = "auto") -> mesh.Where:
        """The server that the shared client of an engine calls."""
        if (engine, path) not in self._servers:
            server = self.server(engine, path)
            self._servers[engine, path], _ = await self._stack.enter_async_context(server)
        return self._servers[engine, path]

    @contextlib.asynccontextmanager
    async def server(
        self, engine: str, path: str = "auto"
    ) -> AsyncIterator[tuple[mesh.Where, Other]]:
        """A server in a new process, and that process."""
        words = ("lattica", "--engine", engine, "--path", path, "--authority", self.seed.hex())
        async with self.process(*words) as process:
            yield wire.decode(bytes.fromhex(await process.line()), mesh.Where), process

    def process(self, *words: str) -> contextlib.AbstractAsyncContextManager[Other]:
        """`python -m bench.servers WORDS`, on the run's kind of event loop."""
        return other("bench.servers", *words, *(("--uvloop",) if self.options.uvloop else ()))

    async def grpc(self) -> grpc_peer.Client | None:
        """A channel to a grpc.aio server; None without the extra `bench`."""
        if self._grpc is None and (where := await self.grpc_where()) is not None:
            self._grpc = await self._stack.enter_async_context(grpc_peer.client(where))
        return self._grpc

    async def grpc_where(self) -> grpc_peer.Where | None:
        """Where a grpc.aio server is."""
        if self._grpc_where is None and grpc_peer.available():
            process = await self._stack.enter_async_context(self.process("grpc"))
            line = bytes.fromhex(await process.line())
            self._grpc_where = wire.decode(line, grpc_peer.Where)
        return self._grpc_where

    async def floor(self) -> FloorClient:
        """A connection to the floor's server."""
        if self._floor is None:
            process = await self._stack.enter_async_context(self.process("floor"))
            where = wire.decode(bytes.fromhex(await process.line()), FloorWhere)
            loop = asyncio.get_running_loop()
            _, self._floor = await loop.create_connection(FloorClient, "127.0.0.1", where.port)
            self._stack.callback(self._floor.close)
        return self._floor

    # ------------------------------------------------------------------- measuring

    async def medians(
        self, title: str, contestants: Sequence[Measure], *, warm_up: bool = True
    ) -> list[float]:
        """Run all once to warm up, then in turn; the median of each."""
        if warm_up:
            self.tell(f"{title}: warming up")
            for contestant in contestants:
                await contestant()
        return await medians(
            contestants,
            rounds=self.rounds,
            tell=lambda number: self.tell(f"{title}: round {number} of {self.rounds}"),
        )

    def tell(self, what: str) -> None:
        """Say on a terminal what is being measured."""
        tell(f"{time.monotonic() - self._started:4.0f} s  {what}")

    def quiet(self) -> None:
        """Clear the line of `tell`."""
        tell("")
