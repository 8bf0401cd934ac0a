"""`python -m bench.blocks`: how fast files move as blocks, and what that costs.

`blocks_swarm` and `blocks_providers` run on emulated links and a virtual clock (`bench.swarm`),
with the engine that links across a network use. The others are processes on loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import anyio
import msgspec

from bench.bulk import ITEM, megabytes
from bench.mesh import Client, Where, client, engines, link_config, member
from bench.processes import Other, other
from bench.rows import Measure, Row, finish, medians, row, tell
from bench.swarm import MBIT, Line, gather, simulate, spread
from bench.targets import DEFAULT_ENGINE, ENGINES, choose
from lattica.config import MIB, StoreConfig
from lattica.identity import wire
from lattica.identity.keys import Identity
from lattica.store import Blocks

ROUNDS = 3
TENSORS = 24
DOWNLOADERS = 8
PROVIDERS = 4
ANY = "-"


class Sizes(msgspec.Struct, frozen=True):
    """Of what is moved, in MiB."""

    loopback: int = 256
    swarm: int = 61  # 64 MB
    providers: int = 32
    version: int = 96
    resume: int = 100
    memory: int = 1024


@contextlib.asynccontextmanager
async def providing(
    engine: str, size: int, folder: Path
) -> AsyncIterator[tuple[Identity, Other, Where, str]]:
    """A process that has a file of so many bytes; the mesh's authority, where, and the id."""
    seed = secrets.token_bytes(32)
    async with other(
        "bench.block_peer", "provide", seed.hex(), engine, str(folder), str(size)
    ) as process:
        where, manifest = (await process.line()).split()
        yield Identity(seed), process, wire.decode(bytes.fromhex(where), Where), manifest


async def loopback(engine: str, size: int, rounds: int) -> tuple[float, float]:
    """MB/s of a fetch into an empty store, and of one raw stream of the same two processes."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            providing(engine, size, Path(folder)) as (authority, _, where, manifest),
            client(authority, where, link_config(engine)) as here,
        ):
            stream = partial(megabytes, partial(here.stub.bulk, ITEM), 1.0)
            fetch = partial(_fetch, here, manifest, size, Path(folder))
            await stream()
            contestants: list[Measure] = [fetch, stream]
            fetched, streamed = await medians(contestants, rounds=rounds)
            return fetched, streamed


async def _fetch(here: Client, manifest: str, size: int, folder: Path) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as empty:
        async with Blocks(Path(empty), here.rpc, None) as blocks:
            begun = time.perf_counter()
            await blocks.path(manifest, providers=[here.server])
            return size / (time.perf_counter() - begun) / 1e6


@contextlib.asynccontextmanager
async def _fetcher(
    engine: str, authority: Identity, where: Where, manifest: str, folder: Path
) -> AsyncIterator[Other]:
    """A process that fetches into a folder."""
    words = (authority.seed.hex(), engine, str(folder), wire.encode(where).hex(), manifest)
    async with other("bench.block_peer", "fetch", *words) as process:
        yield process


async def version(engine: str, size: int) -> tuple[int, int]:
    """Bytes that came for a version of which one tensor changed, and that tensor's."""
    authority, config, tensor = Identity.generate(), link_config(engine), size // TENSORS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        async with (
            member(authority, config) as (links, server),
            client(authority, Where(server.local, links.addresses[0]), config) as here,
            Blocks(Path(folder) / "there", server, None) as there,
            Blocks(Path(folder) / "here", here.rpc, None) as blocks,
        ):
            write_model(path, tensor, changed=0)
            await blocks.path(await there.add(path), providers=[here.server])
            write_model(path, tensor, changed=1)
            changed = await there.add(path)
            before = _received(here)
            await blocks.path(changed, providers=[here.server])
            return _received(here) - before, tensor


def _received(here: Client) -> int:
    link = here.links.find(here.server)
    assert link is not None
    return link.statistics().bytes_in


def write_model(path: Path, tensor: int, *, changed: int) -> None:
    """A file in the safetensors format; `changed` makes one of its tensors another."""
    header = {
        f"layer.{number}": {
            "dtype": "U8",
            "shape": [tensor],
            "data_offsets": [number * tensor, (number + 1) * tensor],
        }
        for number in range(TENSORS)
    }
    encoded = msgspec.json.encode(header)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for number in range(TENSORS):
            seed = number + (1000 if number == TENSORS // 2 and changed else 0)
            file.write(random.Random(seed).randbytes(tensor))


async def resume(engine: str, size: int) -> float:
    """Blocks that were served again because a fetch was killed at 90 %."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        async with providing(engine, size, base) as (authority, served, where, manifest):
            words = (authority, where, manifest)
            async with _fetcher(engine, *words, base / "here") as fetcher:
                while int(await fetcher.line()) < 90:
                    pass
                fetcher.signal(signal.SIGKILL)
            async with _fetcher(engine, *words, base / "here") as fetcher:
                while not (await fetcher.line()).startswith("peak"):
                    pass
            await served.say("")
            return (int(await served.line()) - size) / StoreConfig().block


async def memory(engine: str, size: int) -> float:
    """MiB that a fetching process needs at most, more than before."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        async with (
            providing(engine, size, base) as (authority, _, where, manifest),
            _fetcher(engine, authority, where, manifest, base / "here") as fetcher,
        ):
            while not (line := await fetcher.line()).startswith("peak"):
                pass
            return int(line.split()[1]) / MIB


def rows_of(
    only: Sequence[str], names: Sequence[str], sizes: Sizes, rounds: int = ROUNDS
) -> list[Row]:
    """The rows that are wanted; those of processes once for each engine."""
    found: list[Row] = []
    for measure in choose(only, "blocks"):
        for engine in (DEFAULT_ENGINE,) if measure in EMULATED else names:
            tell(f"blocks: {measure}: {engine}")
            found.append(MEASURES[measure](measure, engine, sizes, rounds))
    return found


def _loopback_row(measure: str, engine: str, sizes: Sizes, rounds: int) -> Row:
    size = sizes.loopback * MIB
    fetched, streamed = anyio.run(loopback, engine, size, rounds)
    note = f"{sizes.loopback} MiB into an empty store, verified and fsynced; {rounds} rounds"
    against = "one stream"
    return row(measure, engine, fetched, "MB/s", reference=streamed, against=against, note=note)


def _swarm_row(measure: str, engine: str, sizes: Sizes, _rounds: int) -> Row:
    line, size = Line(100 * MBIT, 100 * MBIT), sizes.swarm * MIB
    took, sent = simulate(partial(spread, engine, line, peers=DOWNLOADERS, size=size))
    note = f"virtual time; {sizes.swarm} MiB to {DOWNLOADERS} peers; the seeder sent {sent:.0f} MB"
    reference = size / line.up
    return row(measure, engine, took, "s", reference=reference, against="one copy", note=note)


def _providers_row(measure: str, engine: str, sizes: Sizes, _rounds: int) -> Row:
    up, down, size = 50 * MBIT, 1000 * MBIT, sizes.providers * MIB
    times = [
        simulate(partial(gather, engine, up, down, providers=count, size=size))
        for count in (1, PROVIDERS)
    ]
    one, several = (size / seconds / 1e6 for seconds in times)
    note = f"virtual time; {sizes.providers} MiB from {PROVIDERS} peers of 50 Mbit/s up each"
    against = "one provider"
    return row(measure, engine, several, "MB/s", reference=one, against=against, note=note)


def _version_row(measure: str, engine: str, sizes: Sizes, _rounds: int) -> Row:
    came, tensor = anyio.run(version, engine, sizes.version * MIB)
    note = f"1 of {TENSORS} tensors changed; all bytes that the link brought"
    against = "the tensor"
    return row(
        measure, engine, came / 1e6, "MB", reference=tensor / 1e6, against=against, note=note
    )


def _resume_row(measure: str, engine: str, sizes: Sizes, _rounds: int) -> Row:
    again = anyio.run(resume, engine, sizes.resume * MIB)
    note = f"{sizes.resume} MiB from one provider; killed at 90 %; what was served twice"
    return row(measure, engine, again, "blocks", note=note)


def _memory_row(measure: str, engine: str, sizes: Sizes, _rounds: int) -> Row:
    peak = anyio.run(memory, engine, sizes.memory * MIB)
    note = f"{sizes.memory} MiB; the fetching process's peak above what it had before"
    return row(measure, engine, peak, "MiB", note=note)


MEASURES = {
    "blocks_loopback": _loopback_row,
    "blocks_swarm": _swarm_row,
    "blocks_providers": _providers_row,
    "blocks_version": _version_row,
    "blocks_resume": _resume_row,
    "blocks_memory": _memory_row,
}
EMULATED = ("blocks_swarm", "blocks_providers")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.blocks", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--only", nargs="+", default=[], metavar="MEASURE")
    parser.add_argument("--engine", default="both", choices=("both", *ENGINES))
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    args = parser.parse_args(argv)
    measured = rows_of(args.only, engines(args.engine), Sizes(), args.rounds)
    return finish(measured, args.json)


if __name__ == "__main__":
    sys.exit(main())
