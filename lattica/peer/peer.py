"""The peer itself: composes the layers, in the order in which they start and end."""

from __future__ import annotations

import contextlib
import logging
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TypeVar

import anyio
import msgspec

from lattica.actors.host import Host
from lattica.actors.messages import NodeInfo
from lattica.actors.owner import Owner
from lattica.clock import Clock, SystemClock
from lattica.dht import Dht
from lattica.errors import DhtError, GrantError, LatticaError
from lattica.home import Home
from lattica.identity import grants, tickets
from lattica.identity.keys import Identity, PeerId
from lattica.identity.tickets import Contact, Ticket
from lattica.link.endpoint import Endpoint
from lattica.path import addresses as address_text
from lattica.path.lan import LanDiscovery
from lattica.path.portmap import PortMapper
from lattica.peer import sockets
from lattica.peer.home_network import Vicinity, map_ports
from lattica.peer.options import PeerOptions
from lattica.peer.roll import Roll
from lattica.reach.reach import Reach
from lattica.rpc import Rpc, builtin
from lattica.store import Blocks, Document, Documents

S = TypeVar("S")
log = logging.getLogger("lattica.peer")

LEAVE_TIMEOUT = 2.0  # seconds for good-byes


class Peer:
    """One member of a mesh. Made by `Peer.open`."""

    endpoint: Endpoint
    rpc: Rpc
    reach: Reach
    dht: Dht
    documents: Documents
    blocks: Blocks
    host: Host
    core: Owner
    port_mapper: PortMapper | None = None
    lan: LanDiscovery | None = None

    def __init__(
        self,
        options: PeerOptions,
        home: Home,
        identity: Identity,
        membership: grants.Membership,
        clock: Clock,
    ) -> None:
        """Use `Peer.open`."""
        self.options = options
        self.home = home
        self.identity = identity
        self.membership = membership
        self.clock = clock
        self.name = options.name or socket.gethostname()
        self._authority = home.authority()
        self._scopes = grants.verify_chain(
            membership.chain, mesh=membership.mesh, subject=identity.peer_id, now=clock.time()
        )

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, options: PeerOptions | None = None, *, clock: Clock | None = None
    ) -> AsyncIterator[Peer]:
        """Run a peer for as long as the context lasts.

        Raises:
            HomeError, KeyFileError, TicketError, GrantError: the home or the ticket is at fault.
            PortInUseError, AddressError: `listen` cannot be bound.
            DhtError: none of the ticket's contacts answers.
        """
        _say_asyncio()
        options = options or PeerOptions()
        clock = clock or SystemClock()
        failure: Exception | None = None
        async with contextlib.AsyncExitStack() as stack:
            directory = options.home
            if directory is None:
                folder = tempfile.TemporaryDirectory(prefix="lattica-", ignore_cleanup_errors=True)
                directory = Path(stack.enter_context(folder))
            home = Home(directory, clock=clock)
            stack.enter_context(home.locked())
            identity = home.identity()
            membership = home.membership(identity, options.ticket)
            peer = cls(options, home, identity, membership, clock)
            try:
                await peer._start(stack)
                yield peer
            except Exception as error:  # noqa: BLE001 - raised again below
                failure = error
        # Raised here, past the layers' task groups, which would wrap it in one group each.
        if failure is not None:
            raise failure

    # ------------------------------------------------------------------ for users

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others can dial this peer: `host:port`, `tcp:host:port`, `relay:PEER@…`."""
        return self.reach.addresses

    @property
    def can_invite(self) -> bool:
        """Whether this peer holds the mesh's authority key."""
        return self._authority is not None

    def invite(
        self,
        *,
        valid_for: float = 7 * tickets.DAY,
        scopes: Sequence[str] = grants.MEMBER,
    ) -> Ticket:
        """A ticket to this mesh, good for `valid_for` seconds.

        Raises:
            GrantError: this peer does not hold the mesh's authority key.
        """
        if self._authority is None:
            raise GrantError(
                "this peer does not hold the mesh's authority key; invite from the machine "
                "where the mesh was founded: lattica invite"
            )
        here = Contact(self.identity.peer_id, self.addresses)
        return tickets.issue(
            self._authority, [here], now=self.clock.time(), valid_for=valid_for, scopes=scopes
        )

    def serve(self, name: str, service: object) -> None:
        """Offer an RPC service to the mesh; see `lattica.rpc.Rpc.register`."""
        self.rpc.register(name, service)

    def client(
        self, peer: PeerId, service: type[S], name: str, *, timeout: float | None = None
    ) -> S:
        """A typed stub of a peer's service; see `lattica.rpc.Rpc.client`."""
        return self.rpc.client(peer, service, name, timeout=timeout)

    async def document(self, name: str) -> Document:
        """The replicated document `name`."""
        return await self.documents.open(name)

    def node_info(self) -> NodeInfo:
        """This peer's capability record."""
        return msgspec.structs.replace(
            self.host.node_info(),
            addresses=self.addresses,
            scopes=tuple(sorted(self._scopes)),
            relays=self.reach.is_relay,
        )

    # ------------------------------------------------------------------ inside

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        config = self.options.config
        contacts = [c for c in self.home.contacts() if c.peer != self.identity.peer_id]
        path = sockets.bind(self.options, contacts, self.home.port)
        self.endpoint = await stack.enter_async_context(
            Endpoint(
                self.identity,
                self.membership,
                path,
                name=self.name,
                config=config.link,
                clock=self.clock,
            )
        )
        bound = address_text.split(self.endpoint.addresses[0])
        self.home.port = bound[1]
        self.rpc = await stack.enter_async_context(
            Rpc(self.endpoint, config=config.rpc, name=self.name)
        )
        builtin.install(self.rpc)
        self.reach = await stack.enter_async_context(
            Reach(
                self.rpc,
                self.endpoint,
                path,
                config=config,
                relay=self.options.relay,
                find_relays=lambda: self._roll.relays(),
                configured=sockets.dialable(self.options.addresses),
            )
        )
        self.dht = await stack.enter_async_context(
            Dht(
                self.rpc,
                self.identity,
                config=config.dht,
                clock=self.clock,
                addresses=lambda: self.addresses,
                directory=self.home.store,
            )
        )
        self._roll = Roll(self.dht, self.membership.mesh, self.clock)
        self.documents = await stack.enter_async_context(
            Documents(
                self.rpc,
                self.dht,
                self.identity,
                self.membership,
                self.home.store / "documents",
                config.store,
                self.clock,
                authority=self._authority,
            )
        )
        self.blocks = await stack.enter_async_context(
            Blocks(self.home.store / "blocks", self.rpc, self.dht, config.store)
        )
        await self._start_actors(stack)
        await self._bootstrap(contacts)
        self.port_mapper = await map_ports(stack, self.options, self.endpoint, self.reach)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        vicinity = Vicinity(self.endpoint, self.dht, tasks, self.clock)
        self.lan = await vicinity.look_around(stack, self.options, self.reach)
        stack.push_async_callback(self._leave)
        stack.callback(tasks.cancel_scope.cancel)
        tasks.start_soon(self._roll.announce, self.node_info)

    async def _start_actors(self, stack: contextlib.AsyncExitStack) -> None:
        options, config = self.options, self.options.config.actors
        self.core = Owner(
            self.rpc,
            self.dht,
            mesh=self.membership.mesh,
            config=config,
            clock=self.clock,
            blocks=self.blocks,
        )
        self.host = Host(
            self.rpc,
            self.name,
            options.offered,
            options.labels,
            self.core,
            self.home.logs,
            config,
            clock=self.clock,
        )
        self.core.offer(self.node_info)
        await stack.enter_async_context(self.core)
        await stack.enter_async_context(self.host)

    async def _bootstrap(self, contacts: Sequence[Contact]) -> None:
        try:
            await self.dht.bootstrap(contacts)
        except DhtError:
            if self.options.ticket is not None:
                raise  # the user is there and can get another ticket
            log.warning("no peer of the last run answers; trying on")

    async def _leave(self) -> None:
        with anyio.move_on_after(LEAVE_TIMEOUT, shield=True):
            try:
                await self.dht.leave()
            except LatticaError as error:
                log.info("left without a good-bye: %s", error)  # the record expires by itself


def _say_asyncio() -> None:
    """Let anyio know its backend also in callbacks of the loop's readers and timers.

    With sniffio installed, anyio asks it, and outside of a task sniffio knows only what the
    context says; `anyio.run` says it, `asyncio.run` does not.
    """
    try:
        from sniffio import current_async_library_cvar
    except ImportError:
        return  # then anyio asks asyncio itself
    current_async_library_cvar.set("asyncio")
