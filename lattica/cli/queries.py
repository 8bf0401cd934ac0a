"""`lattica status`, `peers` and `invite`: ask the peer that runs on this machine."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from lattica.cli import control
from lattica.cli.options import add_home, duration, home_of
from lattica.cli.output import console, milliseconds, offers, print_json, table
from lattica.cli.reports import InviteReport, PeerReport, StatusReport
from lattica.path.interface import PathStats


def register_status(parser: argparse.ArgumentParser) -> None:
    """`lattica status`."""
    add_home(parser)
    parser.set_defaults(run=_status)


def register_peers(parser: argparse.ArgumentParser) -> None:
    """`lattica peers`."""
    add_home(parser)
    parser.set_defaults(run=_peers)


def register_invite(parser: argparse.ArgumentParser) -> None:
    """`lattica invite`."""
    add_home(parser)
    parser.add_argument(
        "--valid-for",
        type=duration,
        default=0.0,
        metavar="TIME",
        help="how long the ticket can be used, such as 12h or 7d (default: 7d)",
    )
    parser.set_defaults(run=_invite)


async def _status(args: argparse.Namespace) -> None:
    report: StatusReport = await control.ask(
        home_of(args).directory, control.Ask("status"), StatusReport
    )
    if args.json:
        print_json(report)
        return
    rows = [
        ["peer", f"{report.name}  {report.peer}"],
        ["mesh", report.mesh + ("  (founded here)" if report.can_invite else "")],
        ["addresses", ", ".join(report.addresses)],
        ["links", f"{report.links} open, {report.peers} peers known"],
        ["offers", offers(report.total, report.available)],
        ["actors", str(report.actors)],
        ["documents", ", ".join(report.documents) or "none open"],
        ["refused calls", str(report.refused)],
        ["packets", packets(report.path)],
        ["reachable", _reachable(report)],
        ["home", report.home],
        ["up for", f"{report.uptime_s:.0f} s"],
    ]
    console().print(table(["", ""], rows))


async def _peers(args: argparse.Namespace) -> None:
    reports: list[PeerReport] = await control.ask(
        home_of(args).directory, control.Ask("peers"), list[PeerReport]
    )
    if args.json:
        print_json(reports)
        return
    console().print(peer_table(reports))


async def _invite(args: argparse.Namespace) -> None:
    report: InviteReport = await control.ask(
        home_of(args).directory, control.Ask("invite", args.valid_for), InviteReport
    )
    if args.json:
        print_json(report)
        return
    out = console()
    until = datetime.fromtimestamp(report.expires, UTC).strftime("%Y-%m-%d %H:%M UTC")
    out.print(f"a ticket to {', '.join(report.addresses)}, good until {until}; on another machine:")
    out.print(f"\nlattica join {report.ticket}\n")
    out.print("Whoever has it can run code on this mesh: send it as you would a password.")


def peer_table(reports: list[PeerReport]) -> object:
    """The peers as people read them."""
    from rich.table import Table

    rows = [
        [
            report.name + (" (this)" if report.is_self else ""),
            report.peer[:8],
            report.path or "-",
            report.address,
            milliseconds(report.rtt_ms),
            offers(report.total, report.available),
            " ".join(f"{key}={value}" for key, value in report.labels.items()),
            str(report.actors),
        ]
        for report in reports
    ]
    result: Table = table(
        ["peer", "id", "path", "address", "rtt", "offers (free/all)", "labels", "actors"], rows
    )
    return result


def _reachable(report: StatusReport) -> str:
    """What keeps it reachable, and whom it keeps reachable."""
    parts = [f"relays: {', '.join(report.relays) or 'none'}"]
    if report.relay_sessions is not None:
        parts.append(f"relays for others ({report.relay_sessions} sessions)")
    if report.port_mapping:
        parts.append(f"port mapping: {report.port_mapping}")
    return "; ".join(parts)


def packets(path: PathStats) -> str:
    """What tells of trouble on the way: small buffers, and what they have cost."""
    # What is larger than a network takes was a search for how large that is: no trouble.
    lost = sum(count for why, count in path.dropped.items() if why != "send:EMSGSIZE")
    return (
        f"{path.datagrams_in} in, {path.datagrams_out} out, {path.overruns} overran the buffer "
        f"of {path.receive_buffer // 1024} KiB, {lost} dropped or refused"
    )
