"""Peers that share blocks over emulated links, in one process and on a virtual clock.

Each has a line of its own up and down, which all of its traffic shares. Real QUIC connections
and the product's own `Blocks` run on it; what threads do (hashing, the disk) takes no time here.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import anyio.to_thread
import msgspec

from bench.block_peer import write_noise
from bench.mesh import membership
from lattica.config import LinkConfig, StoreConfig
from lattica.dht import Dht
from lattica.identity.keys import Identity
from lattica.identity.tickets import Contact
from lattica.link.endpoint import Endpoint
from lattica.path.memory import Conditions, PacketNetwork
from lattica.rpc import Rpc
from lattica.store import Blocks
from lattica.virtual_loop import VirtualLoop

LATENCY = 0.01  # seconds, one way
QUEUE = 0.1  # seconds of a line that wait before it
MTU = 1472  # bytes of a datagram
MBIT = 125_000.0  # bytes/s


class Line(msgspec.Struct, frozen=True):
    """What a peer is connected by, in bytes/s."""

    up: float
    down: float


def simulate(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run on a virtual clock that stands still while threads work."""
    in_thread = anyio.to_thread.run_sync

    async def held(*args: Any, **options: Any) -> Any:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.threads += 1
        try:
            return await in_thread(*args, **options)
        finally:
            loop.threads -= 1

    with patch.object(anyio.to_thread, "run_sync", held):
        return anyio.run(main, backend_options={"loop_factory": VirtualLoop})


class Swarm:
    """The peers, the first of which knows all others' addresses. An async context manager."""

    def __init__(self, engine: str) -> None:
        self._config = LinkConfig(engine=engine)
        self._network = PacketNetwork(Conditions(latency=LATENCY, mtu=MTU), seed=1)
        self._authority = Identity.generate()
        self._stack = contextlib.AsyncExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._first: Contact | None = None
        self._count = 0
        self.peers: list[Blocks] = []

    async def __aenter__(self) -> Swarm:
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._stack.__aexit__(*error)

    async def start(self, line: Line) -> Blocks:
        """One more peer."""
        self._count += 1
        name = f"peer{self._count}"
        identity = Identity.generate()
        path = self._network.path(name)
        (address,) = path.addresses
        self._network.uplink(address, line.up, int(line.up * QUEUE))
        self._network.downlink(address, line.down, int(line.down * QUEUE))
        enter = self._stack.enter_async_context
        shown = membership(self._authority, identity.peer_id)
        links = await enter(Endpoint(identity, shown, path, name=name, config=self._config))
        rpc = await enter(Rpc(links, name=name))
        dht = await enter(Dht(rpc, identity, addresses=lambda: links.addresses))
        if self._first is None:
            self._first = Contact(rpc.local, links.addresses)
        else:
            await dht.bootstrap([self._first])
        blocks = await enter(Blocks(self._folder / name, rpc, dht, StoreConfig()))
        self.peers.append(blocks)
        return blocks

    async def seed(self, line: Line, size: int) -> tuple[Blocks, str]:
        """A peer that has a file, and the file's id."""
        blocks = await self.start(line)
        path = self._folder / "file"
        write_noise(path, size)
        return blocks, await blocks.add(path)


async def timed(calls: Sequence[Callable[[], Coroutine[Any, Any, Any]]]) -> float:
    """Virtual seconds until all are done, begun together."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(call)
    return loop.time() - begun


async def spread(engine: str, line: Line, *, peers: int, size: int) -> tuple[float, float]:
    """Seconds until all have fetched a file that one peer had; MB that the seeder sent."""
    async with Swarm(engine) as swarm:
        seeder, manifest = await swarm.seed(line, size)
        fetchers = [await swarm.start(line) for _ in range(peers)]
        took = await timed([partial(each.path, manifest) for each in fetchers])
        return took, seeder.served / 1e6


async def gather(engine: str, up: float, down: float, *, providers: int, size: int) -> float:
    """Seconds until one peer has fetched a file from so many that have it."""
    async with Swarm(engine) as swarm:
        for _ in range(providers):
            _, manifest = await swarm.seed(Line(up, down), size)
        fetcher = await swarm.start(Line(up, down))
        return await timed([partial(fetcher.path, manifest)])
