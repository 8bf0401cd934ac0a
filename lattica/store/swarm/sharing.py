"""What this peer has of the manifests that others fetch from it, while it may be fetching too."""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import anyio.to_thread

from lattica.errors import BusyError
from lattica.identity.keys import PeerId
from lattica.store.blocks.blockstore import BlockStore
from lattica.store.blocks.manifest import BlockRef, Manifest, blocks_of
from lattica.store.swarm.messages import MAX_NEWS, MAX_TOLD, Have

MAX_FOLLOWERS = 64  # of one manifest
RETRY_AFTER = 2.0  # seconds
SOON = 0.2


class Share:
    """One manifest, those who follow what is here of it, and the fetches that bring more."""

    def __init__(self, digest: bytes, manifest: Manifest, have: int) -> None:
        """`have`: a bit for each block that is here."""
        self.digest = digest
        self.blocks: tuple[BlockRef, ...] = blocks_of(manifest)
        self.numbers = {block.hash: number for number, block in enumerate(self.blocks)}
        self.have = have
        self.users = 0
        self.meets: list[Callable[[PeerId], None]] = []  # fetches, to be told who else fetches
        self._followers: list[Follower] = []

    @property
    def is_final(self) -> bool:
        """Whether nothing more will come for now."""
        return not self.meets

    def gained(self, number: int) -> None:
        """A block is here now."""
        bit = 1 << number
        if not self.have & bit:
            self.have |= bit
            for follower in self._followers:
                follower.news.append(number)
                follower.wake()

    def gave(self, number: int, peer: PeerId) -> None:
        """A block goes to a peer, who will have it soon: others had better ask for another one."""
        for follower in self._followers:
            if follower.peer != peer:
                follower.given.append(number)
                follower.wake()

    @contextlib.contextmanager
    def fetching(self, meet: Callable[[PeerId], None]) -> Iterator[None]:
        """A fetch brings more. `meet` hears of peers that fetch the same."""
        self.meets.append(meet)
        try:
            for follower in self._followers:
                meet(follower.peer)
            yield
        finally:
            self.meets.remove(meet)
            for follower in self._followers:
                follower.wake()

    @contextlib.contextmanager
    def followed(self, peer: PeerId) -> Iterator[Follower]:
        """A peer wants to know what is here.

        Raises:
            BusyError: too many do.
        """
        if len(self._followers) >= MAX_FOLLOWERS:
            raise BusyError("enough peers follow this manifest here", retry_after=RETRY_AFTER)
        others = [each.peer for each in self._followers if each.peer != peer]
        follower = Follower(self, peer, random.sample(others, min(len(others), MAX_TOLD)))
        for each in self._followers:
            if each.peer != peer and len(each.peers) < MAX_TOLD:
                each.peers.append(peer)
                each.wake()
        for meet in self.meets:
            meet(peer)
        self._followers.append(follower)
        try:
            yield follower
        finally:
            self._followers.remove(follower)


class Follower:
    """A peer that is told what comes."""

    def __init__(self, share: Share, peer: PeerId, peers: list[PeerId]) -> None:
        self.peer = peer
        self.peers = peers  # to be told of
        self.news: deque[int] = deque()
        self.given: deque[int] = deque(maxlen=MAX_NEWS)
        self._share = share
        self._told: bool | None = None  # whether it is final; None before the first message
        self._event = anyio.Event()

    def wake(self) -> None:
        """There may be something to tell."""
        self._event.set()

    async def next(self) -> Have:
        """What is new, when something is; all that is here, the first time."""
        share = self._share
        while self._told is not None and not self._has_news():
            self._event = anyio.Event()
            await self._event.wait()
        blocks = b""
        if self._told is None:
            blocks = share.have.to_bytes((len(share.blocks) + 7) // 8, "little")
        more = tuple(self.news.popleft() for _ in range(min(len(self.news), MAX_NEWS)))
        given, peers = tuple(self.given), tuple(self.peers)
        self.given.clear()
        self.peers = []
        self._told = share.is_final and not self.news
        return Have(blocks, more, given, peers, self._told)

    def _has_news(self) -> bool:
        return bool(self.news or self.given or self.peers or self._told != self._share.is_final)


class Sharing:
    """The manifests that are fetched here, or from here, now."""

    def __init__(self, store: BlockStore) -> None:
        self._store = store
        self._shares: dict[bytes, Share] = {}
        self._opening = anyio.Lock()

    @contextlib.asynccontextmanager
    async def open(self, digest: bytes) -> AsyncIterator[Share]:
        """What is here of a manifest, the same for all who ask at a time.

        Raises:
            BlockMissingError: the manifest is not here.
        """
        async with self._opening:
            share = self._shares.get(digest)
            if share is None:
                share = await anyio.to_thread.run_sync(self._make, digest)
                self._shares[digest] = share
            share.users += 1
        try:
            yield share
        finally:
            share.users -= 1
            if not share.users and self._shares.get(digest) is share:
                del self._shares[digest]

    def _make(self, digest: bytes) -> Share:
        manifest = self._store.spoken_of(digest)
        if manifest is None:
            raise BusyError("the manifest itself is still coming", retry_after=SOON)
        return Share(digest, manifest, self._store.held(manifest))
