"""`lattica ping PEER` and `lattica bench PEER`: measure the link of the peer here."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

from lattica.cli import control, limits
from lattica.cli.daemon import Responder
from lattica.cli.options import add_home, duration, home_of, size
from lattica.cli.output import console, print_json, table
from lattica.cli.paths import kind_of
from lattica.cli.probing import CALLS, MAX_SECONDS, STEPS
from lattica.cli.reports import LinkReport, PingReport, ReplyReport, SpeedReport
from lattica.errors import ControlError
from lattica.peer import Peer, PeerOptions

Asker = Callable[[control.Ask, Any], Awaitable[Any]]
WORDS: dict[str, Callable[[SpeedReport], str]] = {
    "latency": limits.of_latency,
    "calls": lambda report: limits.of_calls(report, CALLS),
    "upload": limits.of_upload,
    "download": limits.of_download,
}


def register_ping(parser: argparse.ArgumentParser) -> None:
    """`lattica ping PEER`."""
    _add_peer(parser)
    parser.add_argument("--size", type=size, default=64, metavar="SIZE", help="default: 64 bytes")
    parser.add_argument("--count", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument(
        "--inflight", type=int, default=1, metavar="N", help="pings sent at once (default: 1)"
    )
    parser.add_argument(
        "--interval", type=duration, default=0.2, metavar="TIME", help="between them; default: 0.2s"
    )
    parser.set_defaults(run=_ping)


def register_bench(parser: argparse.ArgumentParser) -> None:
    """`lattica bench PEER`."""
    _add_peer(parser)
    parser.add_argument(
        "--time",
        type=duration,
        default=2.0,
        metavar="TIME",
        help=f"for each of the {len(STEPS)} figures (default: 2s; at most {MAX_SECONDS:g}s)",
    )
    parser.set_defaults(run=_bench)


def _add_peer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("peer", help="a name or an id, or an id's beginning; see `lattica peers`")
    add_home(parser)
    parser.add_argument(
        "--ticket", default=None, help="where no peer runs here: join for the time of the command"
    )


@contextlib.asynccontextmanager
async def _asking(args: argparse.Namespace) -> AsyncIterator[Asker]:
    """Whom to ask: the peer that runs here, or one that joins for a moment."""
    if args.ticket is None:
        directory: Path = home_of(args).directory
        yield lambda question, kind: control.ask(directory, question, kind)
        return
    options = PeerOptions(ticket=args.ticket, name="lattica-bench", cpus=0)
    async with Peer.open(options) as peer:
        responder = Responder(peer)
        yield lambda question, _kind: responder(question)


# ------------------------------------------------------------------------- ping


async def _ping(args: argparse.Namespace) -> None:
    """Lines as they come, then a summary.

    Raises:
        ControlError: no peer here, no such peer, or no ping was answered.
    """
    if args.count < 1 or args.inflight < 1:
        raise ControlError("--count and --inflight are at least 1")
    replies: list[ReplyReport] = []
    link: LinkReport | None = None
    changes: list[tuple[LinkReport, LinkReport]] = []
    async with _asking(args) as ask:
        while len(replies) < args.count:
            if replies:
                await asyncio.sleep(args.interval)
            at_once = min(args.inflight, args.count - len(replies))
            question = control.Ask("ping", peer=args.peer, size=args.size, count=at_once)
            report: PingReport = await ask(question, PingReport)
            if link is not None and report.link is not None and link.path != report.link.path:
                changes.append((link, report.link))
                if not args.json:
                    _tell_change(link, report.link)
            link = report.link or link
            for reply in report.replies:
                replies.append(reply)
                if not args.json:
                    _tell(len(replies), reply, args.size, args.peer)
    times = sorted(reply.ms for reply in replies if reply.ms is not None)
    if args.json:
        print_json(_summary(args, replies, times, link) | {"changes": changes})
    else:
        _show_summary(replies, times, link)
    if not times:
        raise ControlError(f"no ping of {len(replies)} was answered: {replies[-1].error}")


def _tell_change(before: LinkReport, after: LinkReport) -> None:
    """The link has another way now."""
    console().print(
        f"now {kind_of(after.path)}: {after.path} (was {kind_of(before.path)}: {before.path})",
    )


def _tell(number: int, reply: ReplyReport, nbytes: int, peer: str) -> None:
    text = f"{nbytes} bytes from {peer}: seq={number}"
    text += f" time={reply.ms:.2f} ms" if reply.ms is not None else f" {reply.error}"
    console().print(text)


def _summary(
    args: argparse.Namespace,
    replies: list[ReplyReport],
    times: list[float],
    link: LinkReport | None,
) -> dict[str, Any]:
    return {
        "peer": args.peer,
        "size": args.size,
        "sent": len(replies),
        "answered": len(times),
        "ms": None if not times else _spread(times),
        "replies": replies,
        "link": link,
    }


def _spread(times: list[float]) -> dict[str, float]:
    p95 = times[min(len(times) - 1, int(len(times) * 0.95))]
    return {"min": times[0], "median": median(times), "p95": p95, "max": times[-1]}


def _show_summary(replies: list[ReplyReport], times: list[float], link: LinkReport | None) -> None:
    out, failed = console(), len(replies) - len(times)
    out.print(
        f"{len(replies)} sent, {len(times)} answered, {failed / len(replies):.0%} lost",
    )
    if times:
        figures = _spread(times)
        text = "/".join(f"{figures[name]:.2f}" for name in figures)
        out.print(f"min/median/p95/max {text} ms")
    if link is not None:
        out.print(f"link: {_describe(link)}")


def _describe(link: LinkReport) -> str:
    return (
        f"{link.name} at {link.path}, round trip {link.rtt_ms:.2f} ms "
        f"(shortest {link.rtt_min_ms:.2f} ms), datagrams of {link.datagram} B, {link.engine}"
    )


# ------------------------------------------------------------------------ bench


async def _bench(args: argparse.Namespace) -> None:
    """Each figure in turn, with what limits it.

    Raises:
        ControlError: no peer here, or no such peer.
    """
    reports: dict[str, SpeedReport] = {}
    async with _asking(args) as ask:
        for figure in STEPS:
            _progress(f"measuring {figure} for {args.time:g} s")
            question = control.Ask("measure", peer=args.peer, figure=figure, seconds=args.time)
            reports[figure] = await ask(question, SpeedReport)
    _progress("")
    words = {figure: WORDS[figure](report) for figure, report in reports.items()}
    last = reports["download"].link
    if args.json:
        print_json(
            {
                "peer": args.peer,
                "link": last,
                "figures": {
                    figure: {
                        "value": report.value,
                        "unit": report.unit,
                        "cpu": report.cpu,
                        "lost": report.lost,
                        "limited_by": words[figure],
                    }
                    for figure, report in reports.items()
                },
            }
        )
        return
    out = console()
    out.print(f"link: {_describe(last)}")
    rows = [
        [figure, _figure(report.value), report.unit, words[figure]]
        for figure, report in reports.items()
    ]
    out.print(table(["", "", "", "limited by"], rows))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _progress(text: str) -> None:
    """On a terminal only."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()
