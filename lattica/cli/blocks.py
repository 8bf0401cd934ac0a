"""`lattica blocks`: files and folders by their content, added, fetched, kept, forgotten."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import anyio
import anyio.to_thread
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from lattica.cli import control
from lattica.cli.block_work import BlockWork, Offline, Tell
from lattica.cli.options import add_home, home_of
from lattica.cli.output import console, print_json, size_text, table
from lattica.cli.reports import BlocksReport, ManifestReport
from lattica.errors import ControlError
from lattica.store.blocks.blockstore import BlockStore

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def register_blocks(parser: argparse.ArgumentParser) -> None:
    """`lattica blocks add|get|path|ls|pin|unpin|gc|verify`."""
    parser.set_defaults(run=_blocks, manifest="", path="", quota=None, pin=False)
    ops = parser.add_subparsers(dest="op", metavar="OPERATION", required=True)

    def op(name: str, text: str) -> argparse.ArgumentParser:
        made = ops.add_parser(name, help=text, description=text)
        add_home(made)
        return made

    add = op("add", "take a file or a folder in, announce it, and print its id")
    add.add_argument("path", type=os.path.abspath, help="it is copied, so it may change afterwards")
    add.add_argument("--pin", action="store_true", help="and keep it whatever gc makes room for")
    get = op("get", "fetch what an id names from whoever has it, and write it to a folder")
    get.add_argument("manifest", metavar="ID", help="as `add` prints it: b3-…")
    get.add_argument("path", metavar="FOLDER", type=os.path.abspath, help="made if it is not there")
    path = op("path", "print a folder with the files as links into the store: no second copy")
    path.add_argument("manifest", metavar="ID", help="what of it is not here is fetched")
    op("ls", "what is here, whole or in part")
    for name, text in (("pin", "keep it whatever gc makes room for"), ("unpin", "undo pin")):
        op(name, text).add_argument("manifest", metavar="ID")
    gc = op("gc", "delete what is not needed; what is pinned or in use stays")
    gc.add_argument(
        "--quota",
        type=size_of,
        metavar="SIZE",
        help="also the least recently used, until the rest is at most this, such as 20G",
    )
    check = op("verify", "read every byte; what is damaged is missing from then on")
    check.add_argument("manifest", metavar="ID", nargs="?", default="", help="default: all")


def size_of(text: str) -> int:
    """Bytes of `20G`, `512M`, `4096`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512M or 20G")
    return int(float(match[1]) * UNITS[match[2].upper()])


async def _blocks(args: argparse.Namespace) -> None:
    with _bar(args) as tell:
        report = await _do(args, args.op, tell)
    if args.op == "add" and args.pin:
        args.manifest = report.manifests[0].id
        report = await _do(args, "pin", lambda _done, _total: None)
    if args.json:
        print_json(report)
    else:
        _show(args, report)
    if args.op == "verify" and (report.damaged or report.missing):
        raise ControlError(
            f"{report.damaged} blocks were damaged, {report.missing} are missing; "
            "fetch them again with: lattica blocks get"
        )


async def _do(args: argparse.Namespace, op: str, tell: Tell) -> BlocksReport:
    home = home_of(args)
    quota = -1 if args.quota is None else args.quota
    question = control.Ask("blocks", op=op, manifest=args.manifest, path=args.path, quota=quota)
    if control.socket_path(home.directory).exists():
        with contextlib.suppress(control.NobodyAnswersError):
            report: BlocksReport = await control.ask_long(
                home.directory, question, BlocksReport, tell
            )
            return report
    if op == "get":
        raise ControlError(
            f"no peer runs in {home.directory}, so nobody can be asked; start one: lattica up"
        )
    # Nobody to announce to: the next peer that runs here does.
    store = await anyio.to_thread.run_sync(BlockStore, home.store / "blocks")
    return await BlockWork(Offline(store))(op, args.manifest, args.path, args.quota, tell)


@contextlib.contextmanager
def _bar(args: argparse.Namespace) -> Iterator[Tell]:
    """Shows how far it is, where somebody looks."""
    if args.json or args.op not in ("add", "get", "path") or not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task(args.op, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _show(args: argparse.Namespace, report: BlocksReport) -> None:
    out = console()
    if args.op == "add":
        out.print(report.manifests[0].id)
    elif args.op == "path":
        out.print(report.path, soft_wrap=True)
    elif args.op == "get":
        (held,) = report.manifests
        moved = sum(report.provided.values())
        rate = moved / report.seconds if report.seconds else 0.0
        out.print(
            f"{size_text(held.size)} in {args.path}: {size_text(report.held)} were here, "
            f"{size_text(moved)} came in {report.seconds:.1f} s ({size_text(rate)}/s) from "
            f"{', '.join(report.provided) or 'nobody'}",
        )
    elif args.op == "gc":
        out.print(
            f"{len(report.gone)} manifests and {report.files} files are gone, "
            f"{size_text(report.size)}; {len(report.manifests)} manifests stay"
        )
    elif args.op == "verify":
        out.print(f"{report.blocks} blocks are good, {size_text(report.size)}")
    else:
        out.print(_listing(report.manifests))


def _listing(manifests: list[ManifestReport]) -> object:
    rows = [
        [
            each.id,
            each.name or f"{each.files} files",
            size_text(each.size),
            "all" if each.here >= each.size else f"{100 * each.here / max(1, each.size):.0f} %",
            "pinned" if each.is_pinned else "",
            _when(each.used),
        ]
        for each in manifests
    ]
    return table(["id", "what", "size", "here", "", "last used"], rows)


def _when(seconds: float) -> str:
    ago = time.time() - seconds
    if ago < 86_400:
        return f"{ago / 3600:.0f} h ago" if ago >= 3600 else f"{ago / 60:.0f} min ago"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
