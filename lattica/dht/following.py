"""Following what is said under a key: some of its keepers tell, and looking again misses nothing.

The keepers' side is in `watching`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

import anyio

from lattica.clock import Clock
from lattica.config import DhtConfig
from lattica.dht.finding import Finder
from lattica.dht.protocol import DhtProtocol
from lattica.dht.records import Found
from lattica.dht.routing import PeerNode
from lattica.dht.watching import Watchers
from lattica.identity.keys import PeerId

T = TypeVar("T")


class Follower:
    """Tells one peer's users of changes."""

    def __init__(
        self,
        local: PeerId,
        finder: Finder,
        watchers: Watchers,
        protocol: DhtProtocol,
        *,
        config: DhtConfig,
        clock: Clock,
    ) -> None:
        """`watchers` tells of changes among the records that this peer keeps itself."""
        self._local = local
        self._finder = finder
        self._watchers = watchers
        self._protocol = protocol
        self._config = config
        self._clock = clock

    async def follow(
        self, key: bytes, kind: str, type: type[T], every: float
    ) -> AsyncIterator[list[Found[T]]]:
        """See `Dht.watch`."""
        last: dict[PeerId, T] | None = None
        digests: dict[PeerId, bytes] = {}
        while True:
            merge, nodes = await self._finder.gather(key, kind)
            values = {record.author: record.value for record in merge.found(type)}
            if values != last:
                last = values
                yield merge.found(type)
            with anyio.move_on_after(every):
                await self._changed(key, kind, nodes[: self._config.watches], digests)

    async def _changed(
        self, key: bytes, kind: str, nodes: Sequence[PeerNode], digests: dict[PeerId, bytes]
    ) -> None:
        """Until one of `nodes` says that a key's records are others, or this peer sees it.

        `digests` holds what each said last; who has not been asked yet answers at once.
        """
        left = len(nodes)

        async def ask(node: PeerNode) -> None:
            nonlocal left
            known = said = digests.get(node.peer, b"")
            while said == known:
                answer = await self._protocol.call_watch(node, key, kind, known)
                if answer is None:
                    left -= 1
                    if left:
                        return
                    # Nobody tells any more, for they are gone or have too many to tell.
                    await anyio.sleep(self._config.watch_for)
                    break
                said = digests[node.peer] = answer
            waiting.cancel_scope.cancel()

        async def listen() -> None:
            now = self._clock.time()
            known = self._watchers.digest(key, kind, now)
            while await self._watchers.wait(self._local, key, kind, known, now) == known:
                pass
            waiting.cancel_scope.cancel()

        async with anyio.create_task_group() as waiting:
            waiting.start_soon(listen)
            for node in nodes:
                waiting.start_soon(ask, node)
