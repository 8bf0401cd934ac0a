"""`python -m bench [PART …] [--json FILE] [--rounds N]`: measurements beside their references."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import anyio

from bench.rows import Row, show, write

PARTS = ("rpc", "actors", "serving")


async def run(parts: list[str], rounds: int) -> list[Row]:
    """The rows of the chosen parts, in order."""
    rows: list[Row] = []
    for part in parts:
        module = importlib.import_module(f"bench.{part}")
        rows += await module.rows(rounds=rounds)
    return rows


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds per row")
    args = parser.parse_args()
    rows = anyio.run(run, args.parts or list(PARTS), args.rounds)
    show(rows)
    print(f"medians of {args.rounds} alternating rounds, two processes on loopback of this machine")
    if args.json is not None:
        write(rows, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
