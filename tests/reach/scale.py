"""Many peers that join through one: how soon all know of each other, and what idling costs.

`python -m tests.reach.scale [peers]` prints the figures. It runs on a virtual clock: links, RPC,
reach and the DHT are the real ones, the network is the lab in memory.
"""

from __future__ import annotations

import sys
import time
from contextlib import AsyncExitStack

import anyio
import msgspec

from lattica.config import Config, LinkConfig
from lattica.dht import Dht
from lattica.identity.keys import Identity
from lattica.virtual_loop import VirtualLoop
from tests.netlab.kinds import PORT_RESTRICTED, PUBLIC
from tests.netlab.memory_lab import MemoryLab
from tests.reach.peers import ACCESS, LabPeer, lab_host, lab_peer, until

SPREAD = 5.0  # seconds within which all are started
CONFIG = Config(link=LinkConfig(engine="aioquic"))


class Outcome(msgspec.Struct, frozen=True):
    """What a mesh cost."""

    peers: int
    joined: float  # seconds from the first start until the last has joined
    links: float  # of a peer, on average
    idle: float  # bytes/s that an idle peer sends, on average
    failures: int


async def run(count: int, *, homes: float = 0.5, idle_for: float = 120.0) -> Outcome:
    """Start `count` peers, that share of them behind NATs, and let them idle."""
    lab = MemoryLab(seed=6)
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(anyio.create_task_group())
        peers: list[LabPeer] = []
        dhts: list[Dht] = []
        joined: list[float] = []
        failures = 0

        async def start(number: int, kind: str, *, relay: bool | None = None) -> None:
            name = f"{number}"
            relays = [each for each in peers[:3] if each.reach.is_relay]
            peer = await stack.enter_async_context(
                lab_peer(lab_host(lab, kind), name, relay=relay, relays=relays, config=CONFIG)
            )
            identity = Identity(name.encode().ljust(32))
            dht = await stack.enter_async_context(
                Dht(peer.rpc, identity, addresses=lambda: peer.reach.addresses)
            )
            peers.append(peer)
            dhts.append(dht)

        async def join(dht: Dht) -> None:
            nonlocal failures
            try:
                await dht.bootstrap([peers[0].contact])
                joined.append(anyio.current_time() - began)
            except Exception as error:
                failures += 1
                print(f"not joined: {error}")

        began = anyio.current_time()
        await start(0, PUBLIC, relay=True)
        await start(1, PUBLIC, relay=True)
        await start(2, PUBLIC, relay=True)
        for dht in dhts[1:]:
            tasks.start_soon(join, dht)
        for number in range(3, count):
            is_home = number % 100 < 100 * homes
            await start(number, PORT_RESTRICTED if is_home else PUBLIC)
            tasks.start_soon(join, dhts[-1])
            await anyio.sleep(SPREAD / count)
        await until(lambda: len(joined) + failures == count - 1, 60.0)
        await anyio.sleep(60.0)  # look-ups, relays and upgrades are over
        before = [each.path.statistics().bytes_out for each in peers]
        await anyio.sleep(idle_for)
        spent = sum(each.path.statistics().bytes_out for each in peers) - sum(before)
        links = sum(len(each.endpoint.current()) for each in peers)
        return Outcome(
            peers=count,
            joined=max(joined),
            links=links / count,
            idle=spent / idle_for / count,
            failures=failures,
        )


def main() -> None:
    """Print one mesh's figures."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    began = time.process_time()
    outcome = anyio.run(run, count, backend_options={"loop_factory": VirtualLoop})
    print(
        f"{outcome.peers} peers: all joined after {outcome.joined:.1f} s, {outcome.failures} failed"
        f"; {outcome.links:.1f} links each, {outcome.idle:.0f} bytes/s sent while idle"
        f" ({outcome.idle / outcome.links:.1f} a link);"
        f" access lines of {ACCESS * 1000:.0f} ms; {time.process_time() - began:.0f} s of CPU"
    )


if __name__ == "__main__":
    main()
