"""Who may have a manifest, and the manifest itself from the first that gives it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import anyio.to_thread
import msgspec

from lattica.dht import Dht, dht_key
from lattica.errors import BlockCorruptError, BlockMissingError, LatticaError, StoreError
from lattica.identity.keys import PeerId
from lattica.rpc import Buffer, Rpc
from lattica.store.blocks.blockstore import BlockStore, Known
from lattica.store.blocks.manifest import hash_of, to_hash
from lattica.store.blocks.tree import Root, decode_top
from lattica.store.swarm.providers import Providers

KIND = "provider"

Ask = Callable[[PeerId, bytes], Awaitable[Buffer]]


class Provider(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The value of a "provider" record: its author has these blocks, or some of them."""

    size: int  # bytes of all files


def provider_key(manifest_id: str) -> bytes:
    """Where in the DHT the providers of a manifest are listed."""
    return dht_key("blocks", manifest_id)


class Source:
    """One manifest, and those who may have it."""

    def __init__(
        self,
        manifest_id: str,
        named: Sequence[PeerId],
        rpc: Rpc,
        dht: Dht | None,
        providers: Providers,
        counters: Counter[str],
    ) -> None:
        """Those `named` are asked beside those that the `dht` knows."""
        self.manifest_id = manifest_id
        self.providers = providers
        self._digest = to_hash(manifest_id)
        self._rpc = rpc
        self._dht = dht
        self._counters = counters
        self._named = [peer for peer in named if peer != rpc.local]
        self._found: list[PeerId] | None = None

    async def first(self) -> list[PeerId]:
        """Those named and those found."""
        if self._found is None:
            await self.find()
        return [*self._named, *(self._found or ())]

    async def find(self) -> list[PeerId]:
        """Those that the DHT names now."""
        self._found = []
        if self._dht is not None:
            try:
                records = await self._dht.get(provider_key(self.manifest_id), KIND, Provider)
            except LatticaError as error:
                self._counters[f"lookup:{type(error).__name__}"] += 1
                records = []
            local = self._rpc.local
            self._found = [record.author for record in records if record.author != local]
            for peer in self._found:
                await self.reach(peer)
        return self._found

    async def reach(self, peer: PeerId) -> None:
        """Teach the links a peer's addresses, if they know none."""
        if self._dht is not None and self._rpc.links.find(peer) is None:
            await self._dht.find_peer(peer)

    async def top(self, store: BlockStore, ask: Ask, limit: int) -> Known:
        """The manifest, of at most `limit` bytes, or its root, from the first that gives it.

        Raises:
            BlockMissingError, BlockCorruptError: nobody does; names those tried.
            StoreError: it is no manifest, or too large.
        """
        for peer in self.providers.usable(await self.first()):
            try:
                data = (await ask(peer, self._digest)).data
            except BlockMissingError:
                self.providers.problems[peer] = "does not have it"
                continue
            except LatticaError as error:
                self.providers.failed(peer, error)
                continue
            try:
                return await anyio.to_thread.run_sync(self._keep, store, data, limit)
            except BlockCorruptError:
                self.providers.lied(peer)
        raise self.providers.error(self.manifest_id)

    def _keep(self, store: BlockStore, data: memoryview, limit: int) -> Known:
        if len(data) > limit or hash_of(data) != self._digest:
            raise BlockCorruptError(f"these are not the bytes of {self.manifest_id}")
        top = decode_top(bytes(data))
        if isinstance(top, Root) and top.size > limit:
            raise StoreError(f"the manifest is {top.size} bytes; {limit} are taken")
        with store.claims.adding():  # a sweep that runs has not seen it
            store.write_manifest(self._digest, data)
            return store.known(self._digest)
