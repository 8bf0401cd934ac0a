"""A mesh of two members and a stranger in one process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TypeVar

from lattica.config import KIB, RpcConfig
from lattica.identity import grants
from lattica.identity.keys import Identity
from lattica.identity.signed import Signed
from lattica.link.memory import MemoryLinks, MemoryNetwork
from lattica.rpc import Rpc

T = TypeVar("T")
WINDOW = 64 * KIB  # the smallest of a stream


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds; what it waits for needs no real time."""
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")


async def collect(items: AsyncIterator[T], into: list[T]) -> None:
    """Read a stream to its end; `into` keeps what came before an error."""
    async for item in items:
        into.append(item)  # noqa: PERF401


class Mesh:
    """`a` and `b` are members, `stranger` holds no grant."""

    def __init__(self, config: RpcConfig | None = None, *, latency: float = 0.0) -> None:
        self.network = MemoryNetwork(latency=latency)
        self.config = config
        self.authority = Identity.generate()
        self._stack = AsyncExitStack()
        self.a = self._peer("a", grants.MEMBER)
        self.b = self._peer("b", grants.MEMBER)
        self.stranger = self._peer("stranger", ())

    def _peer(self, name: str, scopes: tuple[str, ...]) -> Rpc:
        identity, mesh = Identity.generate(), self.authority.peer_id
        chain: tuple[Signed, ...] = ()
        if scopes:
            chain = (
                grants.issue(
                    self.authority,
                    mesh=mesh,
                    subject=identity.peer_id,
                    scopes=scopes,
                    expires=time.time() + 600,
                ),
            )
        links = MemoryLinks(self.network, identity, grants.Membership(mesh, chain), name=name)
        return Rpc(links, config=self.config, name=name)

    async def __aenter__(self) -> Mesh:
        for rpc in (self.a, self.b, self.stranger):
            await self._stack.enter_async_context(rpc)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)
