"""A peer: one identity, its sockets, and every layer on top of it."""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.abc
import msgspec

from lattica.actors.directory import NODE
from lattica.actors.host import Host
from lattica.actors.messages import NodeInfo
from lattica.actors.owner import Owner
from lattica.clock import Clock, SystemClock
from lattica.config import Config
from lattica.dht import Dht, dht_key
from lattica.errors import (
    AddressError,
    DhtError,
    GrantError,
    LatticaError,
    PathError,
    PortInUseError,
)
from lattica.home import Home
from lattica.identity import grants, tickets
from lattica.identity.keys import Identity, PeerId
from lattica.identity.tickets import Contact, Ticket
from lattica.link.endpoint import Endpoint
from lattica.path import addresses as address_text
from lattica.path.combined import CombinedPath
from lattica.path.lan import LanDiscovery
from lattica.path.portmap import PortMapper
from lattica.path.tcp import TcpPath
from lattica.path.tls import PORT as TLS_PORT
from lattica.path.tls import TlsPath
from lattica.path.udp import UdpPath
from lattica.reach.reach import Reach
from lattica.rpc import Rpc, builtin
from lattica.store import Blocks, Document, Documents

S = TypeVar("S")
log = logging.getLogger("lattica.peer")

ANNOUNCE_EVERY = 100.0  # seconds between capability records that say nothing new
ANNOUNCE_STEP = 0.5  # seconds; changes are looked for this often
ANNOUNCE_TTL = 300.0
LEAVE_TIMEOUT = 2.0  # seconds for good-byes
LOOPBACK = "127.0.0.1:0"


class PeerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer is and what it offers.

    `None` for a resource means this machine's own amount.
    """

    home: Path | None = None  # None: a temporary home, forgotten at the end
    ticket: str | None = None  # the mesh to join; None: the home's own, or a new one
    name: str = ""  # how people call it; default: the machine's name
    listen: str = ""  # host:port; default: loopback, or every interface where others are remote
    tcp: str | None = None  # also listen there over TCP; "": where UDP listens; None: do not
    tls: str | None = None  # and inside TLS; "": port 443, or any if that is not permitted
    addresses: tuple[str, ...] = ()  # others reach it there, such as by a port forwarded by hand
    relay: bool | None = None  # forward for peers behind NATs; None: if strangers can reach this
    map_ports: bool = True  # ask the home's router to let others in
    lan: bool = True  # find members of the mesh on the local network, and be found
    cpus: float | None = None
    gpus: float = 0.0
    memory: int | None = None  # bytes
    resources: dict[str, float] = {}
    labels: dict[str, str] = {}
    config: Config = Config()


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
        path = self._bind(contacts)
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
                find_relays=self._find_relays,
                configured=_dialable(self.options.addresses),
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
        await self._map_ports(stack)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        await self._look_around(stack, tasks)
        stack.push_async_callback(self._leave)
        stack.callback(tasks.cancel_scope.cancel)
        tasks.start_soon(self._announce)

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
            _offered(options),
            options.labels,
            self.core,
            self.home.logs,
            config,
            clock=self.clock,
        )
        self.core.offer(self.node_info)
        await stack.enter_async_context(self.core)
        await stack.enter_async_context(self.host)

    def _bind(self, contacts: Sequence[Contact]) -> CombinedPath:
        """The sockets: as asked, or loopback unless others can only be elsewhere."""
        listen = self.options.listen or (everywhere() if _any_remote(contacts) else LOOPBACK)
        udp = self._bind_udp(listen)
        try:
            tcp = self._bind_tcp(listen, address_text.split(udp.addresses[0])[1])
        except BaseException:
            udp.close()
            raise
        try:
            tls = self._bind_tls(listen)
        except BaseException:
            udp.close()
            tcp.close()
            raise
        buffer = self.options.config.link.socket_buffer
        further = address_text.join(address_text.split(listen)[0], 0)
        return CombinedPath(
            {address_text.UDP: udp, address_text.TCP: tcp, address_text.TLS: tls},
            make_extra=lambda: UdpPath.bind(further, socket_buffer=buffer // 16),
        )

    def _bind_udp(self, listen: str) -> UdpPath:
        buffer = self.options.config.link.socket_buffer
        host, port = address_text.split(listen)
        if port == 0 and self.home.port:
            try:
                return UdpPath.bind(address_text.join(host, self.home.port), socket_buffer=buffer)
            except PortInUseError:
                log.info("port %d of the last run is taken now", self.home.port)
        return UdpPath.bind(listen, socket_buffer=buffer)

    def _bind_tcp(self, listen: str, udp_port: int) -> TcpPath:
        """The TCP side; without the option it can dial only."""
        asked, proxy = self.options.tcp, self.options.config.link.proxy
        if asked is None:
            return TcpPath(proxy=proxy)
        if asked:
            return TcpPath.bind(asked, proxy=proxy)
        host, port = address_text.split(listen)
        try:
            return TcpPath.bind(address_text.join(host, udp_port), proxy=proxy)
        except PortInUseError:
            if port:
                raise
            log.info("TCP port %d is taken; another is used", udp_port)
            return TcpPath.bind(address_text.join(host, 0), proxy=proxy)

    def _bind_tls(self, listen: str) -> TlsPath:
        """The TLS side; without the option it can dial only."""
        asked, proxy = self.options.tls, self.options.config.link.proxy
        if asked is None:
            return TlsPath(proxy=proxy)
        if asked:
            return TlsPath.bind(asked, proxy=proxy)
        host, _ = address_text.split(listen)
        try:
            return TlsPath.bind(address_text.join(host, TLS_PORT), proxy=proxy)
        except PathError as error:
            path = TlsPath.bind(address_text.join(host, 0), proxy=proxy)
            log.warning(
                "%s; TLS listens at %s, where networks that let out only web traffic do not reach "
                "it. Permit port %d (run as root, or sysctl net.ipv4.ip_unprivileged_port_start), "
                "or forward it there and tell with --address",
                error,
                ", ".join(path.addresses),
                TLS_PORT,
            )
            return path

    async def _bootstrap(self, contacts: Sequence[Contact]) -> None:
        try:
            await self.dht.bootstrap(contacts)
        except DhtError:
            if self.options.ticket is not None:
                raise  # the user is there and can get another ticket
            log.warning("no peer of the last run answers; trying on")

    async def _map_ports(self, stack: contextlib.AsyncExitStack) -> None:
        if not self.options.map_ports or self.reach.candidates.is_quiet:
            return
        udp, tcp = _ports(self.endpoint.addresses)
        host = address_text.split(self.options.listen or everywhere())[0]
        host = "0.0.0.0" if host == "::" else host  # routers map IPv4 only
        mapper = PortMapper(
            port=udp,
            host=host,
            tcp_port=tcp,
            on_change=self.reach.mapped,
            config=self.options.config.port_map,
        )
        self.port_mapper = await stack.enter_async_context(mapper)
        self.reach.woke = mapper.ask_anew

    async def _look_around(
        self, stack: contextlib.AsyncExitStack, tasks: anyio.abc.TaskGroup
    ) -> None:
        """Find members on the local network."""
        if not self.options.lan or self.reach.candidates.is_quiet:
            return

        def found(peer: PeerId, addresses: tuple[str, ...]) -> None:
            if peer != self.identity.peer_id:
                self.endpoint.learn(peer, addresses)
                tasks.start_soon(self._meet, Contact(peer, addresses))

        self.lan = await stack.enter_async_context(
            LanDiscovery(
                self.identity.peer_id,
                self.membership.mesh,
                lambda: self.endpoint.addresses,
                found,
                clock=self.clock,
                config=self.options.config.lan,
            )
        )

    async def _meet(self, contact: Contact) -> None:
        """Know a neighbour as the DHT knows others."""
        if self.endpoint.find(contact.peer) is None:
            try:
                await self.dht.bootstrap([contact])
            except LatticaError as error:
                log.info("the neighbour %s does not answer: %s", contact.peer.short, error)

    async def _find_relays(self) -> Sequence[Contact]:
        """Peers that say they relay, in no order that all others share."""
        key = dht_key("nodes", self.membership.mesh)
        found = await self.dht.get(key, NODE, NodeInfo)
        relays = [
            Contact(record.author, record.value.addresses)
            for record in found
            if record.value.relays and record.author != self.identity.peer_id
        ]
        random.shuffle(relays)
        return relays

    async def _announce(self) -> None:
        """Publish the capability record whenever it changed, and before it expires."""
        key = dht_key("nodes", self.membership.mesh)
        said: NodeInfo | None = None
        due = 0.0
        while True:
            info = self.node_info()
            if info != said or self.clock.monotonic() >= due:
                try:
                    await self.dht.put(key, "node", info, ttl=ANNOUNCE_TTL)
                except LatticaError as error:
                    log.info("the capability record was not stored: %s", error)
                else:
                    said = info
                due = self.clock.monotonic() + ANNOUNCE_EVERY
            await anyio.sleep(ANNOUNCE_STEP)

    async def _leave(self) -> None:
        with anyio.move_on_after(LEAVE_TIMEOUT, shield=True):
            try:
                await self.dht.leave()
            except LatticaError as error:
                log.info("left without a good-bye: %s", error)  # the record expires by itself


def everywhere() -> str:
    """What to listen on for peers elsewhere: every interface, with IPv6 where there is any."""
    return "[::]:0" if socket.has_dualstack_ipv6() else "0.0.0.0:0"


def _dialable(addresses: Sequence[str]) -> tuple[str, ...]:
    """The addresses, if others can dial each.

    Raises:
        AddressError: one is not of the form host:port.
    """
    for address in addresses:
        if address_text.split(address_text.strip_scheme(address))[1] == 0:
            raise AddressError(f"{address!r}: others cannot dial port 0; name the outside port")
    return tuple(addresses)


def _ports(addresses: Sequence[str]) -> tuple[int, int | None]:
    """The UDP port, and the TCP port if there is one."""
    ports: dict[str, int] = {}
    for address in addresses:
        scheme, where = address_text.split_scheme(address)
        ports.setdefault(scheme, address_text.split(where)[1])
    return ports[address_text.UDP], ports.get(address_text.TCP)


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


def _offered(options: PeerOptions) -> dict[str, float]:
    """What is offered by choice; the host fills in what this machine has."""
    offered = {"GPU": options.gpus, **options.resources}
    if options.cpus is not None:
        offered["CPU"] = options.cpus
    if options.memory is not None:
        offered["memory"] = float(options.memory)
    elif options.cpus == 0:
        offered["memory"] = 0.0  # a guest that runs nothing
    return offered


def _any_remote(contacts: Sequence[Contact]) -> bool:
    """Whether some contact has an address off this machine."""
    for contact in contacts:
        for address in contact.addresses:
            try:
                host, _ = address_text.split(address_text.strip_scheme(address))
            except AddressError:
                continue  # not dialled either
            if not address_text.is_loopback(host):
                return True
    return False
