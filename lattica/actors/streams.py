"""Results that come one by one: the owner's side of a generator's items."""

from __future__ import annotations

import asyncio

from blake3 import blake3

from lattica.actors.messages import ObjectId, Outcome
from lattica.actors.objects import ObjectTable

MAX_AHEAD = 256 * 1024 * 1024  # bytes a producer may be ahead of its consumer


class Stream:
    """Items so far, and whether there will be more. Each item is held until it is passed."""

    def __init__(self, stream: ObjectId, table: ObjectTable) -> None:
        self._id = stream
        self._table = table
        self._held: dict[int, ObjectId] = {}
        self._sizes: dict[int, int] = {}
        self._count = 0
        self._ahead = 0
        self._ended = False
        self._changed = asyncio.Event()

    def add(self, outcome: Outcome) -> None:
        """The next item."""
        if self._ended:
            return
        item = item_id(self._id, self._count)
        slot = self._table.retain(item)
        self._table.settle(item, outcome)
        self._held[self._count] = item
        self._sizes[self._count] = slot.nbytes
        self._ahead += slot.nbytes
        self._count += 1
        self._wake()

    def end(self) -> None:
        """No more items."""
        self._ended = True
        self._wake()

    async def next(self, index: int) -> ObjectId | None:
        """The id of an item, once it exists; None past the end."""
        while True:
            # Whoever asks for the next item has taken its own hold of those before.
            for passed in [each for each in self._held if each < index]:
                self._drop(passed)
            if index < self._count:
                return item_id(self._id, index)
            if self._ended:
                return None
            await self._changed.wait()  # as long as the producer takes

    async def room(self) -> None:
        """Wait while the consumer is too far behind."""
        while self._ahead > MAX_AHEAD and not self._ended:
            await self._changed.wait()

    def close(self) -> bool:
        """The consumer is gone; whether the stream had ended by then."""
        ended = self._ended
        for index in list(self._held):
            self._drop(index)
        self.end()
        return ended

    def _drop(self, index: int) -> None:
        self._table.release(self._held.pop(index))
        self._ahead -= self._sizes.pop(index)
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def item_id(stream: ObjectId, index: int) -> ObjectId:
    """The id of a stream's item: anybody who knows the stream can name it."""
    return ObjectId(stream.owner, blake3(stream.key + index.to_bytes(8, "big")).digest(length=16))
