"""`lattica COMMAND`: parse, run, and turn errors into one line and an exit status."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from types import ModuleType

import anyio

from lattica.cli import blocks, daemon, docs, doctor, measure, queries
from lattica.cli.plain import plain
from lattica.errors import LatticaError

COMMANDS = {
    "up": ("run a peer; founds a mesh if this home has none", daemon.register_up),
    "join": ("run a peer in the mesh of a ticket", daemon.register_join),
    "invite": ("print a ticket for another machine", queries.register_invite),
    "status": ("this machine's peer", queries.register_status),
    "peers": ("the peers of the mesh", queries.register_peers),
    "doctor": ("what this network is, and what would make it better", doctor.register_doctor),
    "ping": ("how long small messages to a peer take", measure.register_ping),
    "blocks": ("files and folders by their content", blocks.register_blocks),
    "docs": ("the mesh's documents as this machine has them", docs.register_docs),
    "bench": ("how fast the link to a peer is, and what limits it", measure.register_bench),
}
# `serving` stands above lattica, so it is named here and not imported.
SERVING = {
    "serve": "volunteer for a model: hold some of its layers and answer for them",
    "gateway": "an OpenAI-compatible HTTP endpoint for the mesh's models",
}
EXIT_ERROR, EXIT_INTERRUPTED = 1, 130


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The whole command line. The serving commands load torch only when they are used."""
    parser = argparse.ArgumentParser(
        prog="lattica", description="Run and train models together on machines you own."
    )
    parser.add_argument("--verbose", "-v", action="store_true", help="log what happens to stderr")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (text, register) in COMMANDS.items():
        register(commands.add_parser(name, help=text, description=text))
    for name, text in SERVING.items():
        child = commands.add_parser(name, help=text, description=text)
        if name in argv:
            _load_serving().register(name, child)
    return parser


def _load_serving() -> ModuleType:
    try:
        return importlib.import_module("serving.cli")
    except ImportError as error:
        raise LatticaError(
            f"serving is not installed here ({error}); run: pip install 'lattica-mesh[serving]'"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 for an error, 2 for wrong usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    status = 0
    try:
        args = build_parser(words).parse_args(words)
        logging.basicConfig(
            level=logging.INFO if args.verbose else logging.WARNING,
            format="%(asctime)s %(name)s %(message)s",
            stream=sys.stderr,
        )
        anyio.run(args.run, args)
    except* LatticaError as group:
        for error in leaves(group):
            sys.stderr.write(f"lattica: {plain(str(error))}\n")
        status = EXIT_ERROR
    except* KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    return status


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The errors inside nested groups."""
    result: list[BaseException] = []
    for error in group.exceptions:
        result += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return result
