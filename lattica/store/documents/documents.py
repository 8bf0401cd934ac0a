"""`Documents`: a peer's open documents, kept on disk and equal with its links' peers."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import anyio
import anyio.abc
import msgspec

from lattica.clock import Clock, SystemClock
from lattica.config import StoreConfig
from lattica.dht import Dht, dht_key
from lattica.errors import DocumentError, LatticaError
from lattica.identity.grants import Membership
from lattica.identity.keys import Identity, PeerId
from lattica.link.interface import Link as PeerLink
from lattica.rpc import Rpc
from lattica.store.chains.messages import (
    MAX_BATCH,
    MAX_OTHERS,
    SERVICE,
    Envelopes,
    Exchange,
    Heads,
    Marks,
    Name,
    Notices,
    Others,
    Presences,
)
from lattica.store.chains.proofs import Proofs
from lattica.store.documents.conversation import Conversation
from lattica.store.documents.database import Database
from lattica.store.documents.document import Document
from lattica.store.documents.glances import (
    Glance,
    Roots,
    Seen,
    ask_for,
    glance_at,
    place_of_root,
)
from lattica.store.documents.journal import Journal
from lattica.store.documents.open_copy import OpenCopy
from lattica.store.documents.presence_gossip import PresenceGossip, Present
from lattica.store.documents.proven import ask_for_proofs
from lattica.store.documents.service import DocumentsService
from lattica.store.documents.showing import Shown

log = logging.getLogger("lattica.store")

KIND = "document"
ENOUGH_PEERS = 3  # linked peers with the document, before more are looked up
LOOKUP_EVERY = 12  # times `sync_every`


class OpenedBy(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The value of a "document" record: its author has the document open."""

    document: Name


class Audit(NamedTuple):
    """What a check of a whole document found."""

    updates: dict[PeerId, int]  # by author, each signed and in one chain
    digest: str  # of the content
    forks: int  # proofs that an author has said two things in one place


class Documents:
    """A peer's documents. An async context manager."""

    def __init__(
        self,
        rpc: Rpc,
        dht: Dht | None,
        identity: Identity,
        membership: Membership,
        directory: Path,
        config: StoreConfig | None = None,
        clock: Clock | None = None,
        *,
        authority: Identity | None = None,
    ) -> None:
        """Kept in `directory`; without a `dht` only linked peers are talked to.

        `authority`: the mesh's own key, where it is held; it grants and revokes.
        """
        self.counters: Counter[str] = Counter()
        self._rpc = rpc
        self._dht = dht
        self._identity = identity
        self._membership = membership
        self._directory = directory
        self._config = config or StoreConfig()
        self._clock = clock or SystemClock()
        self._authority = authority
        self._copies: dict[str, OpenCopy] = {}
        self._opening = anyio.Lock()
        self._conversations: dict[PeerId, Conversation] = {}
        self._scopes: dict[PeerId, anyio.CancelScope] = {}
        self._present: dict[str, Present] = {}
        self._sought: dict[str, anyio.Event] = {}  # set when peers with it were looked for once
        self._gossip = PresenceGossip(
            identity.peer_id, self._present, self._config, self._clock, self.counters
        )
        self._journal: Journal
        self._tasks: anyio.abc.TaskGroup
        if dht is not None:
            dht.register_kind(KIND, OpenedBy)

    async def __aenter__(self) -> Self:
        """Open the file.

        Raises:
            StoreError: it cannot be opened.
        """
        self._database = await anyio.to_thread.run_sync(
            functools.partial(
                Database, self._directory / "documents.sqlite", fsync=self._config.fsync
            )
        )
        self._journal = Journal(self._database, retry_every=self._config.sync_every)
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(self._journal.run)
        self._tasks.start_soon(self._gossip.run)
        self._rpc.register(SERVICE, DocumentsService(self))
        self._unsubscribe = self._rpc.links.subscribe(self._link_changed)
        for link in self._rpc.links.current():
            self._link_changed(link, True)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._unsubscribe()
        self._rpc.unregister(SERVICE)
        self._tasks.cancel_scope.cancel()
        try:
            return await self._tasks.__aexit__(kind, error, traceback)
        finally:
            await self._journal.close()

    async def open(self, name: str) -> Document:
        """The document `name` of this mesh, with what this peer and those linked to it have.

        Raises:
            DocumentError: no valid name.
            StoreError: it cannot be read from disk.
        """
        try:
            msgspec.convert(name, Name)
        except msgspec.ValidationError:
            raise DocumentError(
                f"{name!r:.80} is no document's name: use a-z, 0-9, and _ . : / - inside"
            ) from None
        async with self._opening:
            copy = self._copies.get(name)
            if copy is None:
                copy = self._copy(name)
                await copy.load()
                self._copies[name] = copy
                self._present[name] = Present(copy.presence, copy.document.awareness)
                if self._dht is not None:
                    self._sought[name] = anyio.Event()
                    self._tasks.start_soon(self._find_peers, self._dht, name)
        with anyio.move_on_after(self._config.open_timeout):
            await self._met(name)
        return copy.document

    async def glance(self, name: str, *roots: str, agree: int = 1, proven: bool = False) -> Seen:
        """Read `roots` (`map:NAME`, `array:NAME`, `text:NAME`, `count:NAME`) and keep nothing.

        It is the word of the peers that are asked, linked ones first: `agree` of them must say
        the same. Who opens a document instead keeps all of it and can prove it.

        With `proven`, maps only: of the answers of `agree` peers, `content` has the newest
        entries that prove themselves, by their authors' signatures and grants. What no proof
        shows is whether there is a newer one, or another key, that all of them keep back.

        Raises:
            DocumentError: no valid names, too large, no such peers, or they do not agree.
        """
        for root in roots:
            place_of_root(root)
        is_here = name in self._copies and agree == 1

        async def ask(peer: PeerId) -> Glance | None:
            return await (self.glanced(name, roots) if is_here else stub(peer).glance(name, roots))

        async def ask_to_show(peer: PeerId) -> Shown | None:
            return await (self.shown(name, roots) if is_here else stub(peer).show(name, roots))

        def stub(peer: PeerId) -> DocumentsService:
            return self._rpc.client(
                peer, DocumentsService, SERVICE, timeout=self._config.call_timeout
            )

        async def asked(peers: Iterable[PeerId]) -> Seen | None:
            if not proven:
                return await ask_for(roots, peers, ask, agree=agree)
            proofs = Proofs(self._membership.mesh, name, self._config.max_update)
            return await ask_for_proofs(roots, peers, ask_to_show, proofs=proofs, count=agree)

        if is_here:
            await self.glanced(name, roots)  # what is wrong with the question is told
            seen = await asked((self._rpc.local,))
        else:
            seen = await asked(tuple(self._conversations))
        if seen is None and self._dht is not None:
            key = dht_key(KIND, self._membership.mesh.raw + name.encode())
            await self._link_up(self._dht, key, name, room=ENOUGH_PEERS + agree)
            seen = await asked(tuple(self._conversations))
        if seen is None:
            raise DocumentError(f"fewer than {agree} peers with {name!r} open could be asked")
        return seen

    @property
    def opened(self) -> dict[str, Document]:
        """The open documents by name."""
        return {name: copy.document for name, copy in self._copies.items()}

    async def kept(self) -> dict[str, dict[PeerId, int]]:
        """How many updates of each author are on disk here, by document, open or not.

        Raises:
            StoreError: the file cannot be read.
        """
        found = await self._journal.in_thread(self._database.contents)
        return {
            name: {PeerId(author): count for author, count in counts.items()}
            for name, counts in found.items()
        }

    async def verify(self, name: str) -> Audit:
        """Read a document from disk and check every signature and every chain of it.

        Raises:
            StoreError: it cannot be read, or something in it does not verify.
        """
        await self._journal.flush()
        copy = self._copy(name)
        await copy.load(from_snapshot=False)
        forks = len(copy.replica.notices.forks())
        return Audit(copy.document.heads(), copy.document.digest(), forks)

    async def _met(self, name: str) -> None:
        """Wait for the first exchange with peers that have the document.

        A peer that lost its disk, or has an old copy of it back, so learns what it wrote itself
        before it writes on: else it would fork its own chain.
        """
        await self.synced(name)
        sought = self._sought.get(name)
        if sought is not None and not any(c.has_open(name) for c in self._conversations.values()):
            await sought.wait()
            await self.synced(name)

    async def synced(self, name: str) -> None:
        """Wait for an exchange with every linked peer that starts now."""
        conversations = list(self._conversations.values())
        for conversation in conversations:
            conversation.require(name)
        with anyio.move_on_after(self._config.call_timeout):
            for conversation in conversations:
                if self._conversations.get(conversation.peer) is conversation:
                    await conversation.settled()

    # ------------------------------------------------------------------------ the service

    async def exchanged(
        self, peer: PeerId, name: str, heads: Heads, marks: Marks
    ) -> Exchange | None:
        """See `service.Handler`."""
        copy = self._copies.get(name)
        if copy is None:
            return None
        batch = await copy.missing(heads)
        proofs = await copy.contradictions(heads)
        notices = copy.lacking(marks)
        if (conversation := self._conversations.get(peer)) is not None:
            conversation.learned(name, heads, marks)
            conversation.showed(name, batch.heads)
        envelopes = (proofs + batch.envelopes)[:MAX_BATCH]
        return Exchange(copy.heads(), envelopes, batch.is_complete, copy.marks(), notices)

    async def pushed(
        self, peer: PeerId, name: str, envelopes: Envelopes, notices: Notices, also: Others
    ) -> bool:
        """See `service.Handler`."""
        copy = self._copies.get(name)
        if copy is None:
            return True
        await copy.learn(notices)
        is_whole = await copy.receive(peer, envelopes)
        if (conversation := self._conversations.get(peer)) is not None:
            # What came from there need not go back.
            conversation.showed(name, copy.reached(envelopes))
        # Nor to those that its author sends it to itself. Only the author is believed: another
        # could keep an update from peers that way, until the next exchange with them.
        own = copy.reached([envelope for envelope in envelopes if envelope.author == peer])
        for other in also if own else ():
            if (conversation := self._conversations.get(other)) is not None:
                conversation.showed(name, own)
        return is_whole

    async def glanced(self, name: str, roots: Roots) -> Glance | None:
        """See `service.Handler`."""
        copy = self._copies.get(name)
        return None if copy is None else glance_at(copy.document, roots)

    async def shown(self, name: str, roots: Roots) -> Shown | None:
        """See `service.Handler`."""
        copy = self._copies.get(name)
        return None if copy is None else await copy.show(roots)

    async def present(self, peer: PeerId, name: str, presences: Presences) -> None:
        """See `service.Handler`."""
        self._gossip.receive(peer, name, presences)

    # --------------------------------------------------------------------------- internals

    def _link_changed(self, link: PeerLink, is_up: bool) -> None:
        peer = link.remote.peer
        if not is_up and self._rpc.links.find(peer) is not None:
            return  # one of two links at once; the other goes on
        if not is_up:
            self._conversations.pop(peer, None)
            self._gossip.parted(peer)
            if (scope := self._scopes.pop(peer, None)) is not None:
                scope.cancel()
        elif peer not in self._conversations:
            stub = self._rpc.client(
                peer, DocumentsService, SERVICE, timeout=self._config.call_timeout
            )
            conversation = Conversation(
                peer,
                stub,
                self._copies,
                every=self._config.sync_every,
                counters=self.counters,
                opened=functools.partial(self._gossip.opened, peer),
                others=functools.partial(self._others, peer),
            )
            self._gossip.linked(peer, stub)
            self._conversations[peer] = conversation
            self._scopes[peer] = scope = anyio.CancelScope()
            self._tasks.start_soon(self._talk, conversation, scope)

    async def _talk(self, conversation: Conversation, scope: anyio.CancelScope) -> None:
        with scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(conversation.run)
                tasks.start_soon(self._gossip.send, conversation.peer)

    def _copy(self, name: str) -> OpenCopy:
        return OpenCopy(
            name,
            self._identity,
            self._membership,
            self._config,
            self._clock,
            self._database,
            self._journal,
            self.counters,
            self._authority,
            changed=functools.partial(self._changed, name),
            stale=functools.partial(self._ask_again, name),
            synced=functools.partial(self.synced, name),
            moved=functools.partial(self._gossip.changed, name),
        )

    def _others(self, peer: PeerId, name: str) -> Others:
        """Who else is sent what `peer` is sent of a document."""
        having = [
            conversation.peer
            for conversation in self._conversations.values()
            if conversation.peer != peer and conversation.has_open(name)
        ]
        return tuple(having[:MAX_OTHERS])

    def _changed(self, name: str) -> None:
        for conversation in self._conversations.values():
            conversation.changed(name)

    def _ask_again(self, name: str) -> None:
        for conversation in self._conversations.values():
            if conversation.has_open(name):
                conversation.require(name)

    async def _find_peers(self, dht: Dht, name: str) -> None:
        """Link with peers that have the document open, if few linked ones have."""
        key = dht_key(KIND, self._membership.mesh.raw + name.encode())
        announced = False
        while True:
            try:
                if not announced:
                    announced = await dht.put(key, KIND, OpenedBy(name)) > 0
                having = [c for c in self._conversations.values() if c.has_open(name)]
                if len(having) < ENOUGH_PEERS:
                    await self._link_up(dht, key, name)
            except LatticaError as error:
                self.counters[f"lookup:{type(error).__name__}"] += 1
            self._sought[name].set()
            await anyio.sleep(self._config.sync_every * (LOOKUP_EVERY if announced else 1))

    async def _link_up(self, dht: Dht, key: bytes, name: str, *, room: int = ENOUGH_PEERS) -> None:
        for found in await dht.get(key, KIND, OpenedBy):
            if found.author == self._rpc.local or found.author in self._conversations:
                continue
            try:
                await dht.find_peer(found.author)
                await self._rpc.links.connect(found.author)
            except LatticaError as error:
                self.counters[f"connect:{type(error).__name__}"] += 1
                continue
            room -= 1
            if not room:
                break
