"""Calls to other peers of the DHT, and what their outcome says about them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kademlia.node import Node

from lattica.clock import Clock
from lattica.config import DhtConfig
from lattica.dht.messages import SERVICE, FindReply, Lease, clean_addresses
from lattica.dht.routing import PeerNode, Table
from lattica.dht.service import DhtService
from lattica.errors import (
    BusyError,
    DeadlineError,
    LatticaError,
    PermissionDeniedError,
    RecordError,
)
from lattica.identity import grants
from lattica.identity.keys import PeerId
from lattica.identity.signed import Signed
from lattica.identity.tickets import Contact
from lattica.link.supervision import PeerState
from lattica.rpc import Buffer, Rpc

MAX_SUSPECTS = 1024
MAX_LOST = 64
MAX_STUBS = 1024
SAY_AGAIN = 10.0  # seconds between looks at addresses that a peer says over and over
STRIKES = 2  # deadlines in a row, over a link that lives, before a contact is dropped


class FindAnswer(NamedTuple):
    """A checked reply to a query."""

    nodes: list[PeerNode]
    records: memoryview | bytes


class DhtProtocol:
    """Carries queries out over RPC; keeps the table true to their outcome."""

    def __init__(
        self,
        rpc: Rpc,
        table: Table,
        *,
        addresses: Callable[[], tuple[str, ...]],
        config: DhtConfig,
        clock: Clock,
        counters: Counter[str],
    ) -> None:
        self._rpc = rpc
        self._table = table
        self._addresses = addresses
        self._config = config
        self._clock = clock
        self._counters = counters
        self._suspects: OrderedDict[PeerId, float] = OrderedDict()
        self._stubs: dict[tuple[PeerId, float], DhtService] = {}  # a tenth of a query each
        self.lost: OrderedDict[PeerId, Contact] = OrderedDict()  # were in the table once

    async def call_ping(self, node: PeerNode) -> bool:
        """Whether a peer answers; it is entered in the table if it does and is a member."""
        return await self.try_ping(node) is None

    async def try_ping(
        self, node: PeerNode, *, timeout: float | None = None
    ) -> LatticaError | None:
        """Like `call_ping`, but says what was wrong; None if it answered."""
        try:
            addresses = await self._stub(node, timeout).ping(self._addresses())
        except LatticaError as error:
            self._unanswered(node, error)
            return error
        self._answered(node, addresses)
        return None

    async def call_find_node(self, node: PeerNode, target: Node) -> FindAnswer | None:
        """Ask for the contacts closest to `target`; None if there was no answer."""
        return await self.call_find_value(node, target, "")

    async def call_find_value(
        self, node: PeerNode, target: Node, kind: str, contacts: bytes = b"", records: bytes = b""
    ) -> FindAnswer | None:
        """Ask for contacts, and for records of `kind`; None if there was no answer.

        What is known already need not be said: `contacts` and `records` are digests of it, see
        `lattica.dht.knowing`.
        """
        if self.is_suspect(node.peer):
            self._counters["skipped:suspect"] += 1
            return None
        try:
            reply = await self._stub(node).find(
                target.id, kind, self._addresses(), contacts, records
            )
        except LatticaError as error:
            self._unanswered(node, error)
            return None
        self._answered(node, reply.addresses)
        return FindAnswer(self._learn(reply), reply.records.data)

    async def call_store(self, node: PeerNode, envelope: Signed) -> LatticaError | None:
        """Ask a peer to keep a record; None if it did, else why not."""
        try:
            await self._stub(node).store(envelope, self._addresses())
        except (RecordError, PermissionDeniedError) as error:  # it lives, and says no
            self._counters["store_refused"] += 1
            return error
        except LatticaError as error:
            self._unanswered(node, error)
            return error
        node.strikes = 0
        return None

    async def call_hand_over(self, node: PeerNode, records: bytes) -> int | None:
        """Give a peer what others have said; how much it keeps, None if it does not answer."""
        try:
            return await self._stub(node).hand_over(Buffer(records), self._addresses())
        except (RecordError, PermissionDeniedError):  # it lives, and says no
            return None
        except LatticaError as error:
            self._unanswered(node, error)
            return None

    async def call_watch(self, node: PeerNode, key: bytes, kind: str, known: bytes) -> bytes | None:
        """A digest of what is said under a key, once it is not `known`; None: it does not tell."""
        timeout = self._config.watch_for + self._config.query_timeout
        try:
            return await self._stub(node, timeout).watch(key, kind, known)
        except LatticaError as error:
            if not isinstance(error, BusyError):
                self._unanswered(node, error)
            return None

    async def call_lease(self, node: PeerNode, claim: Signed) -> Lease | LatticaError | None:
        """Ask for a lease, or give it up: who has it now; an error if there was no answer."""
        try:
            return await self._stub(node).lease(claim, self._addresses())
        except (RecordError, PermissionDeniedError) as error:  # it lives, and says no
            return error
        except LatticaError as error:
            self._unanswered(node, error)
            return error

    async def call_bequeath(self, node: PeerNode, claims: tuple[Signed, ...]) -> int | None:
        """Give a peer leases that this one granted; how many it took, None: no answer."""
        try:
            return await self._stub(node).bequeath(claims, self._addresses())
        except (RecordError, PermissionDeniedError):  # it lives, and says no
            return None
        except LatticaError as error:
            self._unanswered(node, error)
            return None

    async def call_leased(self, node: PeerNode, key: bytes) -> Lease | None:
        """Who has a key, as a peer has granted it; None also if it does not answer."""
        try:
            return await self._stub(node).leased(key)
        except LatticaError as error:
            self._unanswered(node, error)
            return None

    def is_suspect(self, peer: PeerId) -> bool:
        """Whether a peer failed to answer a moment ago and no link has come up since."""
        until = self._suspects.get(peer)
        if until is None:
            return False
        if until > self._clock.monotonic() and not self.is_heard(peer):
            return True
        del self._suspects[peer]
        return False

    def is_heard(self, peer: PeerId) -> bool:
        """Whether there is a link to a peer, and it shows life."""
        links = self._rpc.links
        return links.find(peer) is not None and links.state(peer) is not PeerState.SUSPECT

    def suspect(self, peer: PeerId) -> None:
        """A peer may be gone: leave it out of look-ups for a while, or until it links to us."""
        self._suspects[peer] = self._clock.monotonic() + self._config.suspect_for
        self._suspects.move_to_end(peer)
        while len(self._suspects) > MAX_SUSPECTS:
            self._suspects.popitem(last=False)

    def trust(self, peer: PeerId) -> None:
        """A peer shows life: it may be asked again."""
        self._suspects.pop(peer, None)

    def nodes_of(self, contacts: Sequence[Contact]) -> list[PeerNode]:
        """Contacts heard of from others; links learn where they can be dialled."""
        nodes = []
        for contact in contacts:
            if contact.peer == self._rpc.local:
                continue
            known = self._table.find(contact.peer)
            if known is not None:
                nodes.append(known)  # what a peer said of itself beats hearsay
                continue
            addresses = clean_addresses(contact.addresses)
            if addresses and self._rpc.links.find(contact.peer) is None:
                self._rpc.links.learn(contact.peer, addresses)
            nodes.append(PeerNode(contact.peer, addresses))
        return nodes

    def _learn(self, reply: FindReply) -> list[PeerNode]:
        if len(reply.contacts) > self._config.k:
            self._counters["truncated:contacts"] += 1
        return self.nodes_of(reply.contacts[: self._config.k])

    def _answered(self, node: PeerNode, addresses: tuple[str, ...]) -> None:
        self.trust(node.peer)
        node.strikes = 0
        node.heard = now = self._clock.monotonic()
        if addresses != node.said or now - node.said_at >= SAY_AGAIN:
            node.said, node.said_at = addresses, now
            said = clean_addresses(addresses)
            if said:
                node.addresses = said
                self._rpc.links.learn(node.peer, said)
        link = self._rpc.links.find(node.peer)
        if link is not None and grants.allows(link.remote.scopes, grants.CALL):
            self._table.add_contact(node)
            self.lost.pop(node.peer, None)

    def _unanswered(self, node: PeerNode, error: LatticaError) -> None:
        self._counters[f"unanswered:{type(error).__name__}"] += 1
        if isinstance(error, BusyError):
            return
        node.strikes += 1
        heard = self.is_heard(node.peer)
        # A deadline on a link whose heartbeats go on means slow, not gone.
        if isinstance(error, DeadlineError) and heard and node.strikes < STRIKES:
            return
        if self._table.find(node.peer) is not None:
            self._table.remove_contact(node)
            self._remember_lost(node)
        if not heard:
            self.suspect(node.peer)

    def _remember_lost(self, node: PeerNode) -> None:
        self.lost[node.peer] = node.contact
        while len(self.lost) > MAX_LOST:
            self.lost.popitem(last=False)

    def _stub(self, node: PeerNode, timeout: float | None = None) -> DhtService:
        timeout = timeout or self._config.query_timeout
        stub = self._stubs.get((node.peer, timeout))
        if stub is None:
            stub = self._rpc.client(node.peer, DhtService, SERVICE, timeout=timeout)
            if len(self._stubs) >= MAX_STUBS:
                self._stubs.clear()
            self._stubs[node.peer, timeout] = stub
        return stub
