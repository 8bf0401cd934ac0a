"""Passes presence on to linked peers: the latest of each peer, at a pace, and never twice."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import anyio

from lattica.clock import Clock
from lattica.config import StoreConfig
from lattica.errors import LatticaError
from lattica.identity.keys import PeerId
from lattica.store.chains.messages import MAX_PRESENCES, Presences
from lattica.store.chains.refusals import RefusedError
from lattica.store.documents.awareness import Awareness
from lattica.store.documents.presence import PresenceBook
from lattica.store.documents.service import DocumentsService

RATE, BURST = 500.0, 1000.0  # presences taken of one link: a second, and at once


class Present(NamedTuple):
    """Presence in one open document."""

    book: PresenceBook
    face: Awareness


class Line:
    """What is to be sent to one linked peer. Bounded: a document has few peers."""

    def __init__(self, stub: DocumentsService) -> None:
        self.stub = stub
        self.open_there: set[str] = set()
        self.due: defaultdict[str, set[PeerId]] = defaultdict(set)
        self.wake = anyio.Event()
        self.room = BURST
        self.at = anyio.current_time()

    def require(self, document: str, peers: Iterable[PeerId]) -> None:
        """These are to be told of, if the peer has the document open."""
        if document in self.open_there:
            self.due[document] |= set(peers)
            self.wake.set()

    def draw(self, count: int) -> bool:
        """Whether so many more may come from there now."""
        now = anyio.current_time()
        self.room, self.at = min(BURST, self.room + (now - self.at) * RATE), now
        if self.room < count:
            return False
        self.room -= count
        return True


class PresenceGossip:
    """Between the books of open documents and the links."""

    def __init__(
        self,
        local: PeerId,
        opened: Mapping[str, Present],
        config: StoreConfig,
        clock: Clock,
        counters: Counter[str],
    ) -> None:
        self._local = local
        self._opened = opened
        self._config = config
        self._clock = clock
        self._counters = counters
        self._lines: dict[PeerId, Line] = {}

    # --------------------------------------------------------------------------- links

    def linked(self, peer: PeerId, stub: DocumentsService) -> None:
        """A link to a peer is up; `send` is due."""
        self._lines[peer] = Line(stub)

    def parted(self, peer: PeerId) -> None:
        """It is down: what the peer said of itself goes with it."""
        self._lines.pop(peer, None)
        for present in self._opened.values():
            if present.book.forget(peer):
                present.face.notify([peer])

    def opened(self, peer: PeerId, document: str) -> None:
        """A linked peer is known to have a document open."""
        line = self._lines.get(peer)
        if line is not None:
            line.open_there.add(document)
            if (present := self._opened.get(document)) is not None:
                line.require(document, present.book.known())

    # ------------------------------------------------------------------------- sending

    def changed(self, document: str) -> None:
        """What this peer says of itself in a document is something else."""
        self._announce(document, self._opened[document].book)

    async def run(self) -> None:
        """Say again and again that this peer is there, and forget who is not."""
        every = self._config.presence_every
        while True:
            await anyio.sleep(every)
            for document, present in tuple(self._opened.items()):
                present.face.notify(present.book.expire(anyio.current_time()))
                if present.book.is_present:
                    self._announce(document, present.book)

    async def send(self, peer: PeerId) -> None:
        """Send what is due, for as long as the link lives."""
        line = self._lines[peer]
        while True:
            await line.wake.wait()  # no deadline: there may be nothing to say
            line.wake = anyio.Event()
            while line.due:
                document, peers = line.due.popitem()
                await self._send(line, peer, document, peers)
            await anyio.sleep(self._config.presence_pace)

    async def _send(self, line: Line, peer: PeerId, document: str, peers: set[PeerId]) -> None:
        present = self._opened.get(document)
        if present is None:
            return
        envelopes = present.book.envelopes(peers - {peer})
        for start in range(0, len(envelopes), MAX_PRESENCES):
            part = tuple(envelopes[start : start + MAX_PRESENCES])
            try:
                await line.stub.present(document, part)
            except LatticaError as error:
                # It is said again soon.
                self._counters[f"presence:{type(error).__name__}"] += 1
                return

    def _announce(self, document: str, book: PresenceBook) -> None:
        book.announce(self._clock.time())
        for line in self._lines.values():
            line.require(document, [self._local])

    # ----------------------------------------------------------------------- receiving

    def receive(self, source: PeerId, document: str, presences: Presences) -> None:
        """Take in what a linked peer passes on."""
        present, line = self._opened.get(document), self._lines.get(source)
        if present is None or line is None:
            return
        line.open_there.add(document)
        if not line.draw(len(presences)):
            self._counters["presence:busy"] += len(presences)
            return
        news = []
        for envelope in presences:
            try:
                is_new = present.book.receive(
                    envelope, wall=self._clock.time(), now=anyio.current_time()
                )
            except RefusedError as refusal:
                self._counters[f"presence:{refusal.reason}"] += 1
                continue
            if is_new:
                news.append(envelope.author)
        if news:
            present.face.notify(news)
            for peer, other in self._lines.items():
                if peer != source:
                    other.require(document, news)
