"""The files of one fetch: what of them is here already, and where the rest belongs."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence

from lattica.errors import BlockCorruptError
from lattica.store.blocks.content import Content, Tick
from lattica.store.blocks.manifest import BlockRef, hash_of

Find = Callable[[bytes], bytes | None]


class Filling:
    """Contents that are to be filled. Blocking; called in threads."""

    def __init__(self, contents: Sequence[Content], find: Find, tick: Tick) -> None:
        """`find` knows other contents' blocks. `tick` is called now and then, and may raise."""
        self._contents = {content.key: content for content in contents}
        self._find = find
        self._places: dict[bytes, list[tuple[Content, int]]] = {}
        self._full: deque[Content] = deque()  # to be given their names
        for content in self._contents.values():
            content.settle(tick)
        self._wanted: dict[bytes, BlockRef] = {}
        self.size = 0  # bytes that the disk must still have room for
        for content in self._contents.values():
            for index in content.missing():
                block = content.blocks[index]
                self._wanted[block.hash] = block
                self._places.setdefault(block.hash, []).append((content, index))
                self.size += block.size

    def copy(self, tick: Tick) -> None:
        """Take what other files of the store have: tensors of an earlier version, mostly.

        Raises:
            StoreError: the disk does not take it.
        """
        for digest in list(self._wanted):
            if (data := self._find(digest)) is not None:
                self._put(digest, data)
                del self._wanted[digest]
                self.promote()
            tick(0)

    def wanted(self) -> list[BlockRef]:
        """The blocks that somebody else must give, each once, in the order of the files."""
        return list(self._wanted.values())

    def look(self) -> list[BlockRef]:
        """What another process that fills the same files has written since the last look."""
        for content in self._contents.values():
            if not content.is_full:
                content.settle()
        found = []
        for digest in list(self._wanted):  # a copy: others write meanwhile
            if all(content.has(index) for content, index in self._places[digest]):
                block = self._wanted.pop(digest, None)
                found += [] if block is None else [block]
        return found

    def write(self, block: BlockRef, data: bytes | memoryview) -> None:
        """Keep a block wherever it belongs. `promote` follows, if a file has all of them now.

        Raises:
            BlockCorruptError: the bytes are others.
            StoreError: the disk does not take it.
        """
        if len(data) != block.size or hash_of(data) != block.hash:
            raise BlockCorruptError(f"these are not the bytes of block {block.hash.hex()[:16]}")
        self._put(block.hash, data)
        self._wanted.pop(block.hash, None)

    def _put(self, digest: bytes, data: bytes | memoryview) -> None:
        for content, index in self._places[digest]:
            content.write(index, data)
            if content.is_full:
                self._full.append(content)

    def sync(self) -> None:
        """What was written is on the disk now.

        Raises:
            StoreError: the disk does not take it.
        """
        for content in self._contents.values():
            content.sync()

    @property
    def has_full(self) -> bool:
        """Whether there is something for `promote`."""
        return bool(self._full)

    def promote(self) -> None:
        """Give files that have all their blocks their names; several threads may.

        Raises:
            StoreError: the disk does not take it.
        """
        while self._full:
            with contextlib.suppress(IndexError):  # another thread was first
                self._full.popleft().complete()

    def complete(self) -> bool:
        """Let the files appear that have all their blocks; whether those are all.

        Raises:
            StoreError: the disk does not take it.
        """
        # A list: each gets its place, whether those before it did or not.
        done = [content.complete() for content in self._contents.values()]
        return all(done)
