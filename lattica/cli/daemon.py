"""`lattica up` and `lattica join`: run a peer until told to stop."""

from __future__ import annotations

import argparse
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from socket import gethostname

import anyio
import msgspec
from rich.text import Text

from lattica.cli import control
from lattica.cli.advice import Network, RelayFinding
from lattica.cli.block_work import BlockWork
from lattica.cli.document_work import DocumentWork
from lattica.cli.options import add_peer, home_of, peer_options
from lattica.cli.output import console, offers, print_json
from lattica.cli.paths import kind_of, path_of
from lattica.cli.plain import plain
from lattica.cli.probing import Probing
from lattica.cli.reports import InviteReport, PeerReport, StatusReport
from lattica.errors import ControlError, HomeInUseError
from lattica.identity.tickets import DAY
from lattica.peer import Peer, PeerOptions

Work = Callable[[Peer], Awaitable[None]]


def register_up(parser: argparse.ArgumentParser) -> None:
    """`lattica up`."""
    add_peer(parser)
    parser.set_defaults(run=_up)


def register_join(parser: argparse.ArgumentParser) -> None:
    """`lattica join TICKET`."""
    parser.add_argument("ticket", help="the line that `lattica invite` printed")
    add_peer(parser)
    parser.set_defaults(
        run=lambda args: run_peer(peer_options(args, ticket=args.ticket), as_json=args.json)
    )


async def _up(args: argparse.Namespace) -> None:
    await run_peer(peer_options(args), as_json=args.json)


async def guest_options(args: argparse.Namespace, command: str) -> PeerOptions:
    """The options of a peer that serves `command`, on its own or beside a running one.

    Where the home's peer runs already, the new one joins its mesh from a home inside.

    Raises:
        ControlError: the running peer cannot invite; the message says what to do.
    """
    options = peer_options(args, ticket=args.ticket)
    home = home_of(args)
    try:
        with home.locked():
            return options
    except HomeInUseError:
        if args.ticket is None:
            try:
                invite: InviteReport = await control.ask(
                    home.directory, control.Ask("invite"), InviteReport
                )
            except ControlError as error:
                raise ControlError(
                    f"a peer runs in {home.directory} already, and {error}; "
                    "or give this one a ticket: --ticket"
                ) from None
            options = msgspec.structs.replace(options, ticket=invite.ticket, listen=args.listen)
    return msgspec.structs.replace(
        options,
        home=home.directory / command,
        name=options.name or f"{gethostname()}-{command}",
        cpus=args.cpus or 0.0,  # the running peer offers this machine's already
    )


async def run_peer(options: PeerOptions, *, as_json: bool, work: Work | None = None) -> None:
    """Run a peer, and `work` beside it, until SIGINT, SIGTERM or the end of `work`."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:

            async def stop_on_signal() -> None:
                async for _ in signals:
                    tasks.cancel_scope.cancel()
                    return

            tasks.start_soon(stop_on_signal)
            async with Peer.open(options) as peer:
                responder = Responder(peer)
                await tasks.start(control.serve, peer.home.directory, responder)
                _announce(peer, as_json=as_json)
                if work is None:
                    await anyio.sleep_forever()
                else:
                    await work(peer)
                tasks.cancel_scope.cancel()


def _announce(peer: Peer, *, as_json: bool) -> None:
    ticket = peer.invite().encode() if peer.can_invite else None
    if as_json:
        print_json(
            {
                "event": "up",
                "name": peer.name,
                "peer": str(peer.identity.peer_id),
                "mesh": str(peer.membership.mesh),
                "addresses": list(peer.addresses),
                "ticket": ticket,
            }
        )
        return
    out = console()
    out.print(
        Text(plain(peer.name), "bold"),
        f"{peer.identity.peer_id.short} is up in mesh {peer.membership.mesh.short} "
        f"at {', '.join(peer.addresses)}",
    )
    out.print(f"offers {offers(peer.host.node_info().total)}; logs in {peer.home.logs}")
    if ticket is not None:
        out.print("on another machine run:\n")
        out.print(f"lattica join {ticket}\n")
    out.print("Ctrl-C stops it")


class Responder:
    """Answers the control socket's questions about one peer."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._probing = Probing(peer)
        self._documents = DocumentWork(peer.documents, self._names, peer.clock)
        self._started = time.monotonic()

    async def __call__(self, question: control.Ask) -> control.Report:
        """Answer one question.

        Raises:
            ControlError: this peer may not invite, or knows no such peer.
        """
        if question.what == "status":
            return await self._status()
        if question.what == "peers":
            return await self.peers()
        if question.what == "network":
            return await self._network()
        if question.what == "ping":
            return await self._probing.ping(question.peer, question.size, question.count)
        if question.what == "measure":
            return await self._probing.measure(question.peer, question.figure, question.seconds)
        return self._invite(question.valid_for)

    async def work(self, question: control.Ask, tell: control.Tell) -> control.Report:
        """What may take long: operations on blocks and documents.

        Raises:
            LatticaError: see `BlockWork` and `DocumentWork`.
        """
        if question.what == "documents":
            return await self._documents(question)
        quota = None if question.quota < 0 else question.quota
        return await BlockWork(self._peer.blocks)(
            question.op, question.manifest, question.path, quota, tell
        )

    async def _status(self) -> StatusReport:
        peer, info = self._peer, self._peer.host.node_info()
        return StatusReport(
            name=peer.name,
            peer=str(peer.identity.peer_id),
            mesh=str(peer.membership.mesh),
            home=str(peer.home.directory),
            addresses=list(peer.addresses),
            links=len(peer.endpoint.current()),
            peers=len(await peer.core.nodes()),
            total=info.total,
            available=info.available,
            actors=info.actors,
            documents={name: doc.digest() for name, doc in peer.documents.opened.items()},
            refused=peer.rpc.counters["refused:permission"],
            uptime_s=round(time.monotonic() - self._started, 1),
            can_invite=peer.can_invite,
            path=peer.endpoint.path.statistics(),
            relays=[each.name for each in self._relays(await self._names())],
            relay_sessions=peer.reach.forwarder.load.sessions if peer.reach.is_relay else None,
            port_mapping=peer.port_mapper.status if peer.port_mapper is not None else "",
        )

    async def _names(self) -> dict[str, str]:
        return {str(each.peer): each.name for each in await self._peer.core.nodes()}

    def _relays(self, names: dict[str, str]) -> list[RelayFinding]:
        return [
            RelayFinding(
                name=names.get(str(each.peer), each.peer.short),
                peer=str(each.peer),
                address=each.addresses[0],
                rtt_ms=round(each.rtt * 1000, 2),
            )
            for each in self._peer.reach.relays
        ]

    async def _network(self) -> Network:
        peer, names = self._peer, await self._names()
        reach = peer.reach
        return Network(
            report=reach.report,
            bound=list(peer.endpoint.addresses),
            published=list(peer.addresses),
            is_quiet=reach.candidates.is_quiet,
            relays=self._relays(names),
            is_relay=reach.is_relay,
            relay_sessions=reach.forwarder.load.sessions,
            mapped=list(reach.candidates.mapped),
            port_mapping=peer.port_mapper.status if peer.port_mapper is not None else "",
            links=dict(Counter(kind_of(link.address) for link in peer.endpoint.current())),
            peers=len(names),
        )

    async def peers(self) -> list[PeerReport]:
        """The live peers, this one first."""
        peer, reports = self._peer, []
        names = await self._names()
        for info in await peer.core.nodes():
            link = peer.endpoint.find(info.peer)
            is_self = info.peer == peer.identity.peer_id
            reports.append(
                PeerReport(
                    name=info.name,
                    peer=str(info.peer),
                    address=link.address if link else ", ".join(info.addresses),
                    path=path_of(link, names) if link else "",
                    rtt_ms=round(link.rtt * 1000, 2) if link else None,
                    is_self=is_self,
                    total=info.total,
                    available=info.available,
                    labels=info.labels,
                    actors=info.actors,
                    scopes=sorted(info.scopes),
                )
            )
        return sorted(reports, key=lambda report: (not report.is_self, report.name))

    def _invite(self, valid_for: float) -> InviteReport:
        if not self._peer.can_invite:
            raise ControlError(
                "this peer does not hold the mesh's authority key; "
                "run `lattica invite` on the machine where the mesh was founded"
            )
        ticket = self._peer.invite(valid_for=valid_for or 7 * DAY)
        return InviteReport(
            ticket=ticket.encode(),
            expires=time.time() + (valid_for or 7 * DAY),
            addresses=list(self._peer.addresses),
        )
