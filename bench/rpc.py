"""`python -m bench.rpc`: calls and streams between two processes on loopback.

Each row measures its reference in the same run, in turn with ours, and shows medians.
`--only` takes measures or the beginnings of their names, such as `echo` or `bulk_quic`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import anyio

from bench import mesh
from bench.rows import Row, show, unmeasured, write
from bench.run import Options, Run
from bench.targets import ENGINES, TARGETS

FAMILIES = ("echo", "bulk", "streams", "wan", "memory", "idle", "connect", "faults")


def families() -> list[ModuleType]:
    """The modules that measure; each has `MEASURES` and `rows(run, wanted)`."""
    names = [f"bench.{name}" for name in FAMILIES]
    return [importlib.import_module(name) for name in names if importlib.util.find_spec(name)]


def select(words: Sequence[str]) -> list[str]:
    """The measures that `words` name or begin; all without words.

    Raises:
        SystemExit: a word names none.
    """
    for word in words:
        if not any(measure.startswith(word) for measure in TARGETS):
            raise SystemExit(f"no measure begins with {word!r}; there are: {', '.join(TARGETS)}")
    return [m for m in TARGETS if not words or any(m.startswith(word) for word in words)]


async def rows(
    *, rounds: int = 5, options: Options | None = None, only: Sequence[str] = ()
) -> list[Row]:
    """The rows of the wanted measures, for each engine, in the table's order."""
    options = options or Options(engines=tuple(mesh.engines("both")), rounds=rounds)
    wanted, started = select(only), time.perf_counter()
    result: list[Row] = []
    async with Run(options) as run:
        for family in families():
            mine = [measure for measure in wanted if measure in family.MEASURES]
            if mine:
                result += await _family(run, family, mine)
        run.quiet()
    sys.stderr.write(f"rpc: {time.perf_counter() - started:.0f} s\n")
    order = list(TARGETS)
    return sorted(result, key=lambda each: (order.index(each.measure), each.engine))


async def _family(run: Run, family: ModuleType, wanted: list[str]) -> list[Row]:
    """The family's rows; if it fails, rows that say so, and the others are still measured."""
    try:
        result: list[Row] = await family.rows(run, wanted)
    except Exception as error:  # noqa: BLE001 - told in the rows
        run.quiet()
        sys.stderr.write(f"{family.__name__} failed: {error!r}\n")
        reason = f"failed: {error!r}"
        return [unmeasured(each, engine, reason) for each in wanted for engine in run.engines]
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a target is missed or a measure failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.rpc", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--only", nargs="+", default=[], metavar="MEASURE")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds per row")
    parser.add_argument(
        "--seconds", type=float, default=1.0, metavar="S", help="of each timed part of a round"
    )
    parser.add_argument("--engine", choices=(*ENGINES, "both"), default="both")
    parser.add_argument("--uvloop", action="store_true", help="both ends, on both sides")
    args = parser.parse_args(argv)
    select(args.only)  # complains at once
    options = Options(
        engines=tuple(mesh.engines(args.engine)),
        rounds=args.rounds,
        seconds=args.seconds,
        uvloop=args.uvloop,
    )
    measured = anyio.run(
        lambda: rows(options=options, only=args.only),
        backend_options={"use_uvloop": args.uvloop},
    )
    show(measured)
    loop = "uvloop" if args.uvloop else "asyncio"
    print(f"medians of {args.rounds} alternating rounds, two processes on loopback, {loop}")
    if args.json is not None:
        write(measured, args.json)
    return 0 if all(each.met is not False and each.value is not None for each in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
