"""What one linked peer knows of our documents, and the task that keeps it up to date."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

import anyio

from lattica.errors import LatticaError
from lattica.identity.keys import PeerId
from lattica.store.chains.messages import Envelopes, Head, Heads, Marks, Notices, Others
from lattica.store.chains.sending import Batch
from lattica.store.documents.service import DocumentsService

RETRY_AFTER = 0.2  # seconds to the first new attempt; each failure in a row doubles it
PATIENCE = 2  # failures in a row until nobody waits for the peer any more


class Copy(Protocol):
    """An open document, as a conversation needs it."""

    def heads(self) -> Heads:
        """How far each author's chain goes here."""
        ...

    def marks(self) -> Marks:
        """What notices say of authors here."""
        ...

    def lacking(self, theirs: Marks) -> Notices:
        """The notices that a peer with the marks `theirs` does not know."""
        ...

    async def missing(self, theirs: Heads) -> Batch:
        """One batch of what a peer lacks and may have."""
        ...

    async def learn(self, notices: Notices) -> None:
        """Take notices in."""
        ...

    async def receive(self, source: PeerId, envelopes: Envelopes) -> bool:
        """Take envelopes in; false if some wait for others."""
        ...


class Conversation:
    """Exchanges heads with one peer now and then, and pushes what is new in between.

    Nothing is queued per peer: what it lacks follows from the heads it is known to have.
    """

    def __init__(
        self,
        peer: PeerId,
        stub: DocumentsService,
        copies: Mapping[str, Copy],
        *,
        every: float,
        counters: Counter[str],
        opened: Callable[[str], None] = lambda _: None,
        others: Callable[[str], Others] = lambda _: (),
    ) -> None:
        """`every`: seconds between exchanges, and at most about that long after one that failed.

        `opened(document)` is called when the peer has it open now; `others(document)` tells who
        has it open besides.
        """
        self.peer = peer
        self._stub = stub
        self._copies = copies
        self._every = every
        self._counters = counters
        self._opened = opened
        self._others = others
        self._known: dict[str, dict[PeerId, Head]] = {}  # documents that the peer has open
        self._marks: dict[str, Marks] = {}
        self._told: Counter[str] = Counter()  # how often `learned` was called
        self._dirty: set[str] = set()
        self._due: set[str] = set(copies)
        self._wake = anyio.Event()
        self._round = anyio.Event()  # set and replaced when no exchange is due any more
        self._asking = False
        self._failures = 0  # in a row
        self._pausing = False  # after one

    def has_open(self, document: str) -> bool:
        """Whether the peer is known to have the document open."""
        return document in self._known

    def learned(self, document: str, heads: Heads, marks: Marks = ()) -> None:
        """The peer said that it has the document open, and how far."""
        self._told[document] += 1
        if document not in self._known:
            self._opened(document)
        self._marks[document] = marks
        self._known[document] = {head.author: head for head in heads}
        self.changed(document)

    def showed(self, document: str, heads: Heads) -> None:
        """The peer has these as well, for it sent them or was sent them."""
        known = self._known.get(document)
        if known is None:
            return
        for head in heads:
            if (old := known.get(head.author)) is None or old.sequence < head.sequence:
                known[head.author] = head

    def changed(self, document: str) -> None:
        """There may be something to push."""
        if document in self._known:
            self._dirty.add(document)
            self._wake.set()

    def require(self, document: str) -> None:
        """An exchange is due now."""
        self._due.add(document)
        self._wake.set()

    async def settled(self) -> None:
        """Wait until no exchange is due, or the peer has failed more than once."""
        while (self._due or self._asking) and not (self._pausing and self._failures >= PATIENCE):
            await self._round.wait()

    async def run(self) -> None:
        """Talk for as long as the link lives."""
        while True:
            try:
                await self._work()
            except LatticaError as error:
                self._counters[f"failed:{type(error).__name__}"] += 1
                self._failures += 1
                self._asking = False
                self._due |= set(self._copies)
                await self._pause()
                continue
            self._failures = 0
            self._finish_round()
            pause = self._every * random.uniform(0.8, 1.2)  # so that peers do not act in step
            with anyio.move_on_after(pause) as waiting:
                await self._wake.wait()
            if waiting.cancelled_caught:
                self._due |= set(self._copies)

    async def _pause(self) -> None:
        """Before a new attempt: longer after each failure, up to the time between exchanges."""
        self._pausing = True
        self._finish_round()
        pause = min(self._every, RETRY_AFTER * 2.0 ** min(self._failures - 1, 20))
        await anyio.sleep(pause * random.uniform(0.8, 1.2))
        self._pausing = False

    async def _work(self) -> None:
        self._wake = anyio.Event()
        while self._due or self._dirty:
            while self._due:
                self._asking = True
                await self._exchange(self._due.pop())
            self._asking = False
            self._finish_round()
            while self._dirty:
                await self._push(self._dirty.pop())

    async def _exchange(self, document: str) -> None:
        is_complete = False
        while not is_complete:
            copy = self._copies.get(document)
            if copy is None:
                return
            before, told = (copy.heads(), copy.marks()), self._told[document]
            reply = await self._stub.exchange(document, *before)
            if reply is None:
                # A peer that opens it asks us too. Its question may be taken in before this
                # answer to ours, which is then out of date: it knows our heads and will push.
                if self._told[document] == told:
                    self._known.pop(document, None)
                    self._marks.pop(document, None)
                return
            self._counters["exchanges"] += 1
            self.learned(document, reply.heads, reply.marks)
            await copy.learn(reply.notices)
            await copy.receive(self.peer, reply.envelopes)
            # Without progress the same question would only get the same answer. A new notice
            # is progress: what the peer has beside it may follow other updates now.
            marks = copy.marks()
            is_complete = (copy.heads(), marks) == before or (
                reply.is_complete and marks == before[1]
            )

    async def _push(self, document: str) -> None:
        while (known := self._known.get(document)) is not None:
            copy = self._copies.get(document)
            if copy is None:
                return
            notices = copy.lacking(self._marks.get(document, ()))
            self._marks[document] = copy.marks()
            batch = await copy.missing(tuple(known.values()))
            if not batch.envelopes and not notices:
                return
            self.showed(document, batch.heads)
            also = self._others(document)
            if not await self._stub.push(document, batch.envelopes, notices, also):
                self._due.add(document)
                return

    def _finish_round(self) -> None:
        self._round.set()
        self._round = anyio.Event()
