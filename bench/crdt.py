"""`python -m bench.crdt`: what it costs to keep documents equal, verified and on disk.

`crdt_sync`, `crdt_apply` and `crdt_open` are of one process. `crdt_gossip` is eight on loopback,
over qh3 where it is installed, each with its own SQLite file and real fsyncs. `crdt_schedules` is
`bench.schedules`: partitions, duplicates, crashes and lies, seeded.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pycrdt

from bench.crdt_peer import DOCUMENT
from bench.mesh import Where, engines, link_config, member
from bench.processes import other
from bench.rows import Row, finish, row, tell
from bench.schedule_world import NOW, identity, membership
from bench.schedules import run_schedule
from bench.targets import choose
from lattica.clock import ManualClock
from lattica.config import StoreConfig
from lattica.identity import wire
from lattica.identity.keys import Identity
from lattica.identity.signed import Signed
from lattica.link.memory import MemoryLinks, MemoryNetwork
from lattica.rpc import Rpc
from lattica.store import Document, Documents
from lattica.store.chains.messages import Exchange, Update
from lattica.store.chains.replica import Replica
from lattica.store.crdt.values import encode_value
from lattica.store.documents.shelf import CHUNK

ENGINE = "-"
NAME = "bench"
AUTHORS = 8
KEYS = 100
MISSING = 10
PROCESSES = 8
PAUSE = 0.1  # seconds between two writes


def written(changes: int, authors: int = AUTHORS) -> list[Replica]:
    """Replicas that have made so many changes between them, of which the last knows all."""
    replicas = [made(number) for number in range(1, authors + 1)]
    reader = replicas[-1]
    for number in range(changes):
        one = replicas[number % authors]
        change(one, number)
        if number % 100 == 0:
            give(one, reader)
            give(reader, one)
    for one in replicas[:-1]:
        give(one, reader)
    return replicas


def made(number: int) -> Replica:
    """An empty replica."""
    member_key = identity(number)
    return Replica(NAME, member_key, membership(member_key), StoreConfig())


def change(one: Replica, number: int) -> None:
    """One entry of a map."""
    with one.transaction(NOW):
        one.state.map("m")[f"key {number % KEYS}"] = encode_value(number)


def give(one: Replica, other_one: Replica) -> None:
    """All that the other lacks."""
    is_complete = False
    while not is_complete:
        batch = one.missing(other_one.heads(), limit=10**9)
        assert batch is not None
        other_one.receive(batch.envelopes)
        is_complete = batch.is_complete


def sync_bytes(changes: int) -> tuple[int, int]:
    """What one exchange takes, both messages, and the envelopes that were missing, in bytes."""
    replicas = written(changes)
    full, late = replicas[-1], made(AUTHORS + 1)
    give(full, late)
    for number in range(MISSING):
        change(full, changes + number)
    asked = wire.encode((DOCUMENT, late.heads(), late.notices.marks()))
    batch = full.missing(late.heads(), limit=10**9)
    assert batch is not None
    assert len(batch.envelopes) == MISSING
    reply = Exchange(full.heads(), batch.envelopes, True, full.notices.marks())
    return len(asked) + len(wire.encode(reply)), sum(len(wire.encode(e)) for e in batch.envelopes)


def apply_rates(changes: int, rounds: int) -> tuple[float, float]:
    """Verified updates a second, and the same updates by pycrdt alone; medians."""
    envelopes = [link.envelope for link in written(changes)[-1].recent()]
    bodies = [wire.decode(envelope.payload, Update).body for envelope in envelopes]
    ours, plain = [], []
    for _ in range(rounds):
        doc: pycrdt.Doc[Any] = pycrdt.Doc()
        began = time.perf_counter()
        for body in bodies:
            doc.apply_update(body)
        plain.append(changes / (time.perf_counter() - began))
        target = made(AUTHORS + 1)
        began = time.perf_counter()
        for start in range(0, changes, CHUNK):
            target.receive(envelopes[start : start + CHUNK])
        ours.append(changes / (time.perf_counter() - began))
        assert sum(head.sequence for head in target.heads()) == changes
    return statistics.median(ours), statistics.median(plain)


async def open_times(changes: int) -> tuple[float, float]:
    """Seconds to open a document of so many changes: from its snapshot, and without it."""
    envelopes = [link.envelope for link in written(changes, authors=2)[-1].recent()]
    with tempfile.TemporaryDirectory() as folder:
        config = StoreConfig(max_author_log=1 << 30, open_timeout=0.0)
        await _fill(Path(folder), envelopes, config)
        compacted = await _opened(Path(folder), config, changes)
        async with _Alone(Path(folder), config) as documents:
            documents._database._connection.execute("DELETE FROM snapshots")
        replayed = await _opened(Path(folder), config, changes)
    return compacted, replayed


async def _fill(folder: Path, envelopes: Sequence[Signed], config: StoreConfig) -> None:
    async with _Alone(folder, config) as documents:
        document = await documents.open(DOCUMENT)
        copy = documents._copies[DOCUMENT]
        for start in range(0, len(envelopes), CHUNK):
            await copy.receive(identity(1).peer_id, tuple(envelopes[start : start + CHUNK]))
        await document.compact()


async def _opened(folder: Path, config: StoreConfig, changes: int) -> float:
    async with _Alone(folder, config) as documents:
        began = time.perf_counter()
        document = await documents.open(DOCUMENT)
        assert len(document.map("m")) == KEYS
        took = time.perf_counter() - began
        assert sum(document.heads().values()) == changes
        return took


class _Alone(AsyncExitStack):
    """Documents of a peer without links."""

    def __init__(self, folder: Path, config: StoreConfig) -> None:
        super().__init__()
        self._folder = folder
        self._config = config

    async def __aenter__(self) -> Documents:  # type: ignore[override]
        await super().__aenter__()
        key = identity(AUTHORS + 1)
        shown = membership(key)
        rpc = await self.enter_async_context(Rpc(MemoryLinks(MemoryNetwork(), key, shown)))
        return await self.enter_async_context(
            Documents(rpc, None, key, shown, self._folder, self._config, ManualClock(NOW))
        )


async def gossip(writes: int) -> float:
    """Median milliseconds from a write on one of eight peers until all others have read it."""
    seed = secrets.token_bytes(32)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        places: list[str] = []
        others = []
        for number in range(PROCESSES - 1):
            process = await stack.enter_async_context(
                other("bench.crdt_peer", seed.hex(), str(folder / str(number)), *places)
            )
            places.append((await process.line()).strip())
            others.append(process)
        links, rpc = await stack.enter_async_context(
            member(Identity(seed), link_config(engines("both")[-1]))
        )
        documents = await stack.enter_async_context(
            Documents(rpc, None, links.identity, links.membership, folder / "writer")
        )
        for place in places:
            where = wire.decode(bytes.fromhex(place), Where)
            links.learn(where.peer, (where.address,))
            await links.connect(where.peer)
        document = await documents.open(DOCUMENT)
        return await _time_writes(document, others, writes)


async def _time_writes(document: Document, others: Sequence[Any], writes: int) -> float:
    times = []
    for number in range(writes):
        began = time.perf_counter()
        document.map("m")["number"] = number
        async with anyio.create_task_group() as tasks:

            async def reads(process: Any, wanted: str = str(number)) -> None:
                while (await process.line()).strip() != wanted:
                    pass

            for process in others:
                tasks.start_soon(reads, process)
        times.append(time.perf_counter() - began)
        # All eight share one disk here: the others' fsyncs are not to hold up the next write.
        await anyio.sleep(PAUSE)
    return statistics.median(times) * 1000


def schedules(count: int) -> tuple[int, int]:
    """Replicas that diverged, and writes that were lost or lies believed, in so many schedules."""
    diverged = wrong = 0
    for seed in range(count):
        if seed % 50 == 0:
            tell(f"crdt: schedule {seed} of {count}")
        outcome = run_schedule(seed)
        diverged += outcome.diverged
        wrong += outcome.lost + outcome.believed + outcome.refused_honest
    return diverged, wrong


def rows_of(only: Sequence[str], *, changes: int, large: int, count: int) -> list[Row]:
    """The rows that are wanted."""
    wanted = choose(only, "crdt")
    found: list[Row] = []
    if "crdt_sync" in wanted:
        tell("crdt: synchronisation")
        moved, missing = sync_bytes(changes)
        note = f"{changes} changes by {AUTHORS} authors, {MISSING} missing; both messages"
        found.append(
            row("crdt_sync", ENGINE, moved, "B", reference=missing, against="updates", note=note)
        )
    if "crdt_apply" in wanted:
        tell("crdt: verified updates")
        ours, plain = apply_rates(changes, rounds=5)
        found.append(row("crdt_apply", ENGINE, ours, "1/s", reference=plain, against="pycrdt"))
    if "crdt_gossip" in wanted:
        tell("crdt: eight processes")
        found.append(row("crdt_gossip", ENGINE, anyio.run(gossip, 100), "ms"))
    if {"crdt_open", "crdt_open_share"} & set(wanted):
        tell("crdt: opening")
        compacted, replayed = anyio.run(open_times, large)
        note = f"{large} changes"
        found.append(row("crdt_open", ENGINE, compacted, "s", note=note))
        found.append(
            row(
                "crdt_open_share",
                ENGINE,
                compacted,
                "s",
                reference=replayed,
                against="replay",
                note=note,
            )
        )
    if {"crdt_diverged", "crdt_lost"} & set(wanted):
        diverged, wrong = schedules(count)
        note = f"{count} schedules"
        found.append(row("crdt_diverged", ENGINE, diverged, "replicas", note=note))
        found.append(row("crdt_lost", ENGINE, wrong, "writes", note=note))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.crdt", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--only", nargs="+", default=[], metavar="MEASURE")
    parser.add_argument("--changes", type=int, default=10_000, help="of the synchronised document")
    parser.add_argument("--large", type=int, default=100_000, help="changes of the opened one")
    parser.add_argument("--schedules", type=int, default=10_000)
    args = parser.parse_args(argv)
    measured = rows_of(args.only, changes=args.changes, large=args.large, count=args.schedules)
    return finish(measured, args.json)


if __name__ == "__main__":
    sys.exit(main())
