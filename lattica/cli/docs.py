"""`lattica docs`: the mesh's documents as this machine has them."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec

from lattica.cli import control
from lattica.cli.options import add_home, home_of
from lattica.cli.output import console, print_json, table
from lattica.cli.reports import DocumentReport, DocumentsReport
from lattica.errors import ControlError


def register_docs(parser: argparse.ArgumentParser) -> None:
    """`lattica docs ls|show|watch|verify|grant|revoke`."""
    parser.set_defaults(run=_docs, document="", author="", days=0.0)
    ops = parser.add_subparsers(dest="op", metavar="OPERATION", required=True)
    for op, text, has_name in (
        ("ls", "those of which something is here", False),
        ("show", "what one says now", True),
        ("watch", "what one says, now and whenever it changes; Ctrl-C stops it", True),
        ("verify", "read it from disk and check every signature and chain", True),
        ("grant", "let a member write it; where the mesh was founded", True),
        ("revoke", "let a peer write it no more, for good; where the mesh was founded", True),
    ):
        made = ops.add_parser(op, help=text, description=text)
        add_home(made)
        if has_name:
            made.add_argument("document", metavar="NAME")
        if op in ("grant", "revoke"):
            made.add_argument("author", metavar="PEER", help="an id, its start, or a name")
        if op == "grant":
            made.add_argument("--days", type=float, default=30.0, help="for so long (30)")


async def _docs(args: argparse.Namespace) -> None:
    if args.op == "watch":
        await _watch(args)
        return
    report = await _ask(args, args.op)
    if args.json:
        print_json(report)
    elif args.op == "show":
        _show(report.documents[0])
    else:
        console().print(_listing(report.documents))
    if args.op == "verify" and report.documents[0].forks:
        raise ControlError(
            f"{report.documents[0].forks} proofs are kept here that an author has signed two "
            "different updates in one place; do not trust it with writing"
        )


async def _ask(args: argparse.Namespace, op: str, digest: str = "") -> DocumentsReport:
    question = control.Ask(
        "documents",
        op=op,
        document=args.document,
        digest=digest,
        author=args.author,
        days=args.days,
    )
    home = home_of(args).directory
    report: DocumentsReport = await control.ask_long(
        home, question, DocumentsReport, lambda _done, _total: None
    )
    return report


async def _watch(args: argparse.Namespace) -> None:
    (seen,) = (await _ask(args, "show")).documents
    while True:
        if args.json:
            print_json(seen)
        else:
            _show(seen)
        (seen,) = (await _ask(args, "wait", seen.digest)).documents


def _show(document: DocumentReport) -> None:
    out = console()
    out.print(f"{document.name}  {document.digest[:16]}")
    if not document.content:
        out.print("  nothing is in it yet, as far as this machine knows; `lattica docs ls` has all")
    for name, held in sorted(document.content.items()):
        rows = [[f"  {name}", key, value] for key, value in _rows(held)]
        out.print(table(["", "", ""], rows))


def _rows(held: Any) -> list[tuple[str, str]]:
    """The lines of a map, an array, a text or a counter."""
    match held:
        case dict():
            return [(key, _text(value)) for key, value in sorted(held.items())]
        case list():
            return [(str(index), _text(value)) for index, value in enumerate(held)]
        case str():
            return [(str(number), line) for number, line in enumerate(held.splitlines(), 1)]
    return [("", _text(held))]


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _listing(documents: list[DocumentReport]) -> object:
    rows = [
        [
            each.name,
            each.digest[:16] or "not open",
            str(sum(each.updates.values())),
            ", ".join(f"{author}: {count}" for author, count in sorted(each.updates.items())),
            str(each.refused),
            str(each.forks),
        ]
        for each in documents
    ]
    return table(["document", "digest", "updates", "by", "refused", "forks"], rows)
