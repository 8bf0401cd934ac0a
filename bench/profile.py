"""`python -m bench.profile`: where the calling end spends the time of a call, by layer and engine.

The client of `echo128_c64` and `echo128_c1_p50` is stopped every millisecond of its CPU time; the
innermost Python frame tells the layer (a call into C counts for the line that makes it). Signals
are handled between bytecodes, so shares are good to a few percent.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import anyio

from bench import mesh
from bench.echo import SMALL
from bench.loops import rate
from bench.run import Options, Run

INTERVAL = 0.001  # seconds of CPU time
IN_FLIGHT = (64, 1)
# The first whose text is in a frame's file is its layer.
LAYERS = (
    ("QUIC engine", ("/aioquic/", "/qh3/", "/cryptography/", "/link/engine_", "/link/aioquic_")),
    ("QUIC engine", ("/link/qh3_", "/link/congestion", "/link/recovery", "/link/bbr")),
    ("link and socket", ("/lattica/link/", "/lattica/path/")),
    ("calls", ("/lattica/rpc/", "/lattica/identity/")),
    ("event loop", ("/asyncio/", "/selectors", "/anyio/")),
    ("caller", ("",)),
)
Found = dict[tuple[str, int], dict[str, float]]  # by engine and calls in flight, then by layer
NAMES = tuple(dict.fromkeys(name for name, _ in LAYERS))


def layer(file: str) -> str:
    """The layer of a source file."""
    return next(name for name, parts in LAYERS if any(part in file for part in parts))


@contextmanager
def sampled() -> Iterator[Counter[str]]:
    """Count samples by layer. Main thread only."""
    counts: Counter[str] = Counter()

    def sample(_: int, frame: FrameType | None) -> None:
        if frame is not None:
            counts[layer(frame.f_code.co_filename)] += 1

    before = signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)
    try:
        yield counts
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


async def profile(
    engines: Sequence[str], seconds: float
) -> dict[tuple[str, int], dict[str, float]]:
    """Microseconds of CPU for a call in each layer, by engine and calls in flight."""
    found: Found = {}
    async with Run(Options(engines=tuple(engines), seconds=seconds)) as run:
        for engine, client in zip(run.engines, await run.clients(), strict=True):
            for in_flight in IN_FLIGHT:

                async def call(client: mesh.Client = client) -> object:
                    return await client.stub.repeat(SMALL)

                await rate(call, in_flight=in_flight, seconds=seconds / 5)  # warms up
                with sampled() as counts:
                    cpu, begin = time.process_time(), time.perf_counter()
                    calls = await rate(call, in_flight=in_flight, seconds=seconds)
                    cpu, took = time.process_time() - cpu, time.perf_counter() - begin
                each = cpu / (calls * took) * 1e6
                total = counts.total() or 1
                found[engine, in_flight] = {n: each * counts[n] / total for n in NAMES}
    return found


def draw(found: Found, image: Path) -> None:
    """Stacked bars, one for each engine, a panel for each number in flight."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), layout="constrained")
    for panel, in_flight in zip(figure.subplots(1, len(IN_FLIGHT)), IN_FLIGHT, strict=True):
        rows = {engine: shares for (engine, n), shares in found.items() if n == in_flight}
        left = dict.fromkeys(rows, 0.0)
        for name in NAMES:
            widths = [rows[engine][name] for engine in rows]
            panel.barh(list(rows), widths, left=list(left.values()), label=name)
            left = {engine: left[engine] + rows[engine][name] for engine in rows}
        panel.set_xlabel(f"µs of the caller's CPU for a call, {in_flight} in flight")
        panel.spines[["top", "right"]].set_visible(False)
        panel.invert_yaxis()
    figure.legend(
        *panel.get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False
    )
    figure.savefig(image, dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and draw if asked to."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("image", type=Path, nargs="?", help="also draw them here")
    parser.add_argument("--engine", choices=("aioquic", "qh3", "both"), default="both")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="for each figure")
    args = parser.parse_args(argv)
    found = anyio.run(profile, mesh.engines(args.engine), args.seconds)
    print(
        f"{'µs of CPU for a call':<24}" + "".join(f"{name:>17}" for name in NAMES) + f"{'all':>9}"
    )
    for (engine, in_flight), shares in found.items():
        figures = "".join(f"{shares[name]:>17.1f}" for name in NAMES)
        print(f"{engine + f', {in_flight} in flight':<24}{figures}{sum(shares.values()):>9.1f}")
    if args.image is not None:
        draw(found, args.image)
    return 0


if __name__ == "__main__":
    sys.exit(main())
