"""Options that commands share, and how their text becomes values."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from lattica.home import Home
from lattica.peer import PeerOptions, everywhere

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def size(text: str) -> int:
    """Bytes of `512MiB`, `2G`, `1048576`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512MiB or 2G")
    return int(float(match[1]) * _UNITS[match[2]])


def duration(text: str) -> float:
    """Seconds of `30m`, `12h`, `7d`, `45`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 30m, 12h or 7d")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]]


def amount(text: str) -> tuple[str, float]:
    """`camera=1` as a resource's name and amount."""
    name, sign, value = text.partition("=")
    try:
        number = float(value) if sign else 1.0
        if not name or number < 0:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a resource such as camera=1") from None
    return name, number


def label(text: str) -> tuple[str, str]:
    """`zone=attic` as a label's name and value."""
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not a label such as zone=attic")
    return name, value


def add_home(parser: argparse.ArgumentParser) -> None:
    """`--home` and `--json`, which every command takes."""
    parser.add_argument(
        "--home",
        type=Path,
        default=None,
        metavar="DIR",
        help="the peer's directory (default: $LATTICA_HOME or the user's data directory)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def add_peer(parser: argparse.ArgumentParser) -> None:
    """What a running peer is and offers."""
    add_home(parser)
    parser.add_argument("--name", default="", help="how people call it (default: host name)")
    parser.add_argument(
        "--listen",
        default="",
        metavar="HOST:PORT",
        help="UDP address (default: every interface, the port of the last run)",
    )
    parser.add_argument(
        "--tcp",
        nargs="?",
        const="",
        default=None,
        metavar="HOST:PORT",
        help="listen on TCP as well, for networks that block UDP (default: where UDP listens)",
    )
    parser.add_argument(
        "--tls",
        nargs="?",
        const="",
        default=None,
        metavar="HOST:PORT",
        help="listen inside TLS as well, for networks that let out nothing but web traffic "
        "(default: port 443, or any where that is not permitted)",
    )
    parser.add_argument(
        "--address",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="others reach this peer there, such as by a port that was forwarded by hand",
    )
    relay = parser.add_mutually_exclusive_group()
    relay.add_argument(
        "--relay",
        action="store_true",
        default=None,
        help="forward packets for peers that cannot be reached (default: if strangers reach this)",
    )
    relay.add_argument("--no-relay", dest="relay", action="store_false", help="never forward")
    parser.add_argument(
        "--no-port-mapping",
        dest="map_ports",
        action="store_false",
        help="do not ask the router to let others in (PCP, NAT-PMP, UPnP)",
    )
    parser.add_argument(
        "--no-lan",
        dest="lan",
        action="store_false",
        help="neither look for peers on the local network nor be found there (mDNS)",
    )
    offered = parser.add_argument_group("what it offers (default: this machine's own)")
    offered.add_argument("--cpus", type=float, default=None, metavar="N")
    offered.add_argument("--gpus", type=float, default=0.0, metavar="N")
    offered.add_argument("--memory", type=size, default=None, metavar="SIZE")
    offered.add_argument(
        "--resource", type=amount, action="append", default=[], metavar="NAME=AMOUNT"
    )
    offered.add_argument("--label", type=label, action="append", default=[], metavar="NAME=VALUE")


def home_of(args: argparse.Namespace) -> Home:
    """The home that a command works on."""
    return Home(args.home) if args.home is not None else Home.default()


def peer_options(args: argparse.Namespace, *, ticket: str | None = None) -> PeerOptions:
    """The options of a peer from its command line.

    Without a ticket it may be the mesh's first peer, which others must be able to reach.
    """
    return PeerOptions(
        home=home_of(args).directory,
        ticket=ticket,
        name=args.name,
        listen=args.listen or ("" if ticket else everywhere()),
        tcp=args.tcp,
        tls=args.tls,
        addresses=tuple(args.address),
        relay=args.relay,
        map_ports=args.map_ports,
        lan=args.lan,
        cpus=args.cpus,
        gpus=args.gpus,
        memory=args.memory,
        resources=dict(args.resource),
        labels=dict(args.label),
    )
