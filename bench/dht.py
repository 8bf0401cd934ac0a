"""`python -m bench.dht`: what the DHT finds, what it costs, how fast it is.

Most rows are one seeded run of simulated peers on a virtual clock (`bench.dht_world`: the product's
own decisions, with loss, delays, churn and liars). `dht_get` and `dht_store` are eight processes
on loopback, over qh3 where it is installed; their reference is hivemind's figure, measured earlier
and not beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from math import log2
from pathlib import Path
from typing import Any

import anyio
import msgspec

from bench.dht_lies import steered
from bench.dht_world import SimPeer, World
from bench.mesh import Where, engines, link_config, member
from bench.processes import other
from bench.rows import Row, finish, row, tell
from bench.targets import choose
from lattica.config import DhtConfig
from lattica.dht import Dht, dht_key
from lattica.identity import wire
from lattica.identity.keys import Identity
from lattica.identity.tickets import Contact
from lattica.virtual_loop import VirtualLoop

HIVEMIND_GET, HIVEMIND_STORE = 5.7, 16.5  # milliseconds, p50, 8 processes on loopback
PROCESSES = 8
CALLS = 200
SIZES = (10, 100, 1000, 10_000)
WRITERS = 64
LOSS, LIARS = 0.02, 0.1
CHURN = 0.5  # of the peers in an hour
KIND = "note"
ENGINE = "-"


class Found(msgspec.Struct, frozen=True):
    """What look-ups brought under churn: shares of what there was."""

    recall: float
    closest: float
    gets: int


class Cost(msgspec.Struct, frozen=True):
    """What look-ups cost at one size."""

    peers: int
    rounds: float
    queries: float
    kilobytes: float


def simulate(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run on a virtual clock."""
    return anyio.run(main, backend_options={"loop_factory": VirtualLoop})


async def churn(peers: int, *, minutes: int, seed: int = 1, joined: bool = True) -> Found:
    """Peers come and go, lose packets and lie; the honest ones look for each other's records.

    All have joined one after the other, or stand as if they had.
    """
    # Peers that stand as if they had met go on to fill their tables, which is not what is sought.
    config = None if joined else DhtConfig(maintain_every=20.0, refresh_every=3600.0)
    async with World(seed=seed, loss=LOSS, config=config) as world:
        if joined:
            for number in range(peers):
                await world.start(is_liar=number % int(1 / LIARS) == int(1 / LIARS) - 1)
        else:
            await world.settle(peers, liars=LIARS)
        keys: dict[SimPeer, bytes] = {}
        for peer in world.random.sample(world.honest, min(200, len(world.honest))):
            keys[peer] = dht_key("bench", peer.id.raw.hex())
            await peer.dht.put(keys[peer], KIND, b"here")
        hits = gets = near = wanted = 0
        due = 0.0
        for _ in range(minutes):
            due += peers * CHURN / 60
            while due >= 1.0:
                due -= 1.0
                gone = world.random.choice(list(world.peers.values()))
                keys.pop(gone, None)
                await world.kill(gone)
                await world.start(is_liar=gone.is_liar)
            for author in world.random.sample(list(keys), min(20, len(keys))):
                reader = world.random.choice(world.honest)
                found = await reader.dht.get(keys[author], KIND, bytes)
                gets += 1
                hits += any(each.author == author.id for each in found)
                target = world.random.randbytes(20)
                got = {node.peer for node in await reader.dht.closest(target)} | {reader.id}
                true = world.closest(target, world.config.k)
                near += len(got.intersection(true))
                wanted += len(true)
            await anyio.sleep(60.0)
        return Found(hits / gets, near / wanted, gets)


async def cost(peers: int, *, lookups: int = 100) -> Cost:
    """What a look-up asks in a mesh whose tables are as Kademlia's are."""
    async with World(seed=peers) as world:
        for _ in range(peers):
            world.add_static()
        world.fill_tables()
        everybody = list(world.peers.values())
        total: list[tuple[int, int]] = []
        for peer in everybody:
            peer.traffic.bytes = 0
        for _ in range(lookups):
            peer = world.random.choice(everybody)
            counters = peer.dht.counters
            before = counters["lookup_rounds"], counters["lookup_queries"]
            await peer.dht.closest(world.random.randbytes(20))
            after = counters["lookup_rounds"], counters["lookup_queries"]
            total.append((after[0] - before[0], after[1] - before[1]))
        sent = sum(peer.traffic.bytes for peer in everybody)
        return Cost(
            peers,
            statistics.mean(rounds for rounds, _ in total),
            statistics.mean(queries for _, queries in total),
            sent / lookups / 1000,
        )


async def writers(count: int = WRITERS, *, peers: int = 100) -> int:
    """How many of so many authors' records under one key are not found afterwards."""
    async with World(seed=2, loss=LOSS) as world:
        for _ in range(peers):
            await world.start()
        key = dht_key("bench", "one key")
        authors = world.random.sample(world.honest, count)
        async with anyio.create_task_group() as tasks:
            for author in authors:
                tasks.start_soon(author.dht.put, key, KIND, author.id.raw)
        reader = next(each for each in world.honest if each not in authors)
        found = {each.author for each in await reader.dht.get(key, KIND, bytes)}
        return count - len(found.intersection(author.id for author in authors))


async def idle(peers: int, *, settle: float = 3600.0, seconds: float = 1800.0) -> float:
    """Bytes that a peer sends each second for two records of its own, when all have settled.

    They are its addresses and what it offers, as every peer of a mesh publishes them.
    """
    async with World(seed=3) as world:
        for number in range(peers):
            peer = await world.start()
            await peer.dht.put(dht_key("offers", str(number)), KIND, bytes(200), ttl=300.0)
        await anyio.sleep(settle)
        before = sum(peer.traffic.bytes for peer in world.honest)
        await anyio.sleep(seconds)
        sent = sum(peer.traffic.bytes for peer in world.honest) - before
        return sent / seconds / peers


async def loopback(calls: int = CALLS) -> tuple[float, float]:
    """Median milliseconds of a get and of a store among eight processes."""
    seed = secrets.token_bytes(32)
    async with contextlib.AsyncExitStack() as stack:
        where: Where | None = None
        for _ in range(PROCESSES - 1):
            words = () if where is None else (wire.encode(where).hex(),)
            process = await stack.enter_async_context(other("bench.dht_peer", seed.hex(), *words))
            told = wire.decode(bytes.fromhex(await process.line()), Where)
            where = where or told
        assert where is not None
        links, rpc = await stack.enter_async_context(
            member(Identity(seed), link_config(engines("both")[-1]))
        )
        dht = Dht(rpc, links.identity, addresses=lambda: links.addresses)
        dht.register_kind(KIND, bytes)
        await stack.enter_async_context(dht)
        await dht.bootstrap([Contact(where.peer, (where.address,))])
        stores, gets = [], []
        for number in range(calls):
            key = dht_key("bench", str(number))
            began = time.perf_counter()
            await dht.put(key, KIND, b"x" * 100)
            stores.append(time.perf_counter() - began)
            began = time.perf_counter()
            assert await dht.get(key, KIND, bytes)
            gets.append(time.perf_counter() - began)
        return statistics.median(gets) * 1000, statistics.median(stores) * 1000


def select(words: Sequence[str]) -> list[str]:
    """The measures that `words` name or begin; all without words.

    Raises:
        SystemExit: a word names none.
    """
    return choose(words, "dht")


def rows_of(only: Sequence[str], peers: int, image: Path | None) -> list[Row]:
    """The rows that are wanted."""
    wanted = select(only)
    found: list[Row] = []

    def add(measure: str, value: float, unit: str, note: str = "", **reference: Any) -> None:
        if measure in wanted:
            found.append(row(measure, ENGINE, value, unit, note=note, **reference))

    if {"dht_recall", "dht_closest"} & set(wanted):
        tell("dht: churn")
        seen = simulate(lambda: churn(peers, minutes=60))
        note = f"{peers} peers, {seen.gets} gets in an hour, {LOSS:.0%} loss, {LIARS:.0%} liars"
        add("dht_recall", seen.recall, "share", note)
        add("dht_closest", seen.closest, "share", note)
    if "dht_steered" in wanted:
        tell("dht: liars that steer")
        alone, two = (
            simulate(partial(steered, peers, paths=paths, share=LIARS))
            for paths in (1, DhtConfig().paths)
        )
        note = f"{two.queries:.1f} queries; on one path {alone.recall:.1%}, {alone.queries:.1f}"
        add("dht_steered", two.recall, "share", f"{peers} peers, {LIARS:.0%} liars; {note}")
    sizes = [size for size in SIZES if f"dht_rounds_{size}" in wanted]
    costs = []
    for size in sizes:
        tell(f"dht: look-ups among {size}")
        costs.append(one := simulate(partial(cost, size)))
        note = f"{one.queries:.1f} queries, {one.kilobytes:.1f} kB a look-up, both ways"
        add(
            f"dht_rounds_{size}",
            one.rounds,
            "rounds",
            note,
            reference=log2(size) / 2,
            against="log2(n) / 2",
        )
    if image is not None and costs:
        draw(costs, image)
    if {"dht_get", "dht_store"} & set(wanted):
        tell("dht: eight processes")
        get, store = anyio.run(loopback)
        add("dht_get", get, "ms", reference=HIVEMIND_GET, against="hivemind, earlier")
        add("dht_store", store, "ms", reference=HIVEMIND_STORE, against="hivemind, earlier")
    if "dht_writers_lost" in wanted:
        tell("dht: writers")
        add("dht_writers_lost", simulate(writers), "records", f"{WRITERS} writers of one key")
    if "dht_idle" in wanted:
        tell("dht: idle peers")
        add("dht_idle", simulate(lambda: idle(peers)), "B/s", f"{peers} peers, headers included")
    return found


def draw(costs: Sequence[Cost], image: Path) -> None:
    """Rounds and queries by the number of peers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = [each.peers for each in costs]
    left.plot(sizes, [each.rounds for each in costs], "o-", label="rounds in a row")
    left.plot(sizes, [0.6 * log2(size) for size in sizes], "k--", label="1.2 · log2(n) / 2")
    right.plot(sizes, [each.queries for each in costs], "o-", label="peers asked")
    for panel in (left, right):
        panel.set_xscale("log")
        panel.set_xlabel("peers in the mesh")
        panel.set_ylim(0)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False)
    figure.savefig(image, dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.dht", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--only", nargs="+", default=[], metavar="MEASURE")
    parser.add_argument("--peers", type=int, default=1000, help="of the mesh under churn, and idle")
    parser.add_argument("--plot", type=Path, metavar="IMAGE", help="look-ups by size")
    args = parser.parse_args(argv)
    measured = rows_of(args.only, args.peers, args.plot)
    return finish(measured, args.json)


if __name__ == "__main__":
    sys.exit(main())
