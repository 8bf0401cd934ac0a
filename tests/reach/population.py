"""Many sites of the kinds that people have: how many pairs are linked, and how many directly.

`python -m tests.reach.population [seed] [sites]` prints the figures. It runs on a virtual clock.
"""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack

import anyio
import msgspec

from lattica.path.way import WayKind
from lattica.virtual_loop import VirtualLoop
from tests.netlab import kinds
from tests.netlab.memory_lab import MemoryLab
from tests.reach.peers import LabPeer, ReachPeer, lab_host, lab_peer, lab_relays, ready

# Percent of sites, after published counts of NAT kinds among homes, offices and carriers.
SHARES = {
    kinds.PUBLIC: 8,
    kinds.FIREWALL: 4,
    kinds.FULL_CONE: 6,
    kinds.ADDRESS_RESTRICTED: 4,
    kinds.PORT_RESTRICTED: 46,
    kinds.PORT_RESTRICTED_RANDOM: 6,
    kinds.CARRIER_HOME: 9,
    kinds.CARRIER_SYMMETRIC_HOME: 1,
    kinds.SYMMETRIC_RANDOM: 7,
    kinds.SYMMETRIC_SEQUENTIAL: 2,
    kinds.SYMMETRIC_BLOCK: 2,
    kinds.ADDRESS_DEPENDENT: 1,
    kinds.UDP_BLOCKED: 4,
}
DIALS_AT_ONCE = 16
PATIENCE = 600.0  # seconds after the last dial
QUIET = 60.0  # seconds without a change: what is relayed now stays so


class Outcome(msgspec.Struct, frozen=True):
    """What became of a population."""

    pairs: int
    linked: int
    direct: int
    relayed: dict[str, int]  # pairs, by their kinds
    seconds: float  # until the last one was direct
    peers: dict[str, int]

    @property
    def share(self) -> float:
        """Of pairs that are direct."""
        return self.direct / self.pairs


def draw(sites: int, seed: int) -> list[str]:
    """The kind of each site, in the shares told, as exactly as the number allows."""
    whole = {kind: sites * share / 100 for kind, share in SHARES.items()}
    drawn = [kind for kind, count in whole.items() for _ in range(int(count))]
    rest = {kind: count - int(count) for kind, count in whole.items()}
    chance = random.Random(seed)
    while len(drawn) < sites:
        kind = chance.choices(list(rest), list(rest.values()))[0]
        drawn.append(kind)
        rest[kind] = 0.0
    chance.shuffle(drawn)
    return drawn


async def run(sites: int, seed: int) -> Outcome:
    """Link every pair of a drawn population in the lab in memory."""
    lab = MemoryLab(seed=seed)
    drawn = draw(sites, seed)
    async with AsyncExitStack() as stack:
        relays = await stack.enter_async_context(lab_relays(lab, 3))
        peers: list[LabPeer] = []
        for number, kind in enumerate(drawn):
            made = lab_peer(
                lab_host(lab, kind), f"{number}", relays=relays, listens_tcp=kind == kinds.PUBLIC
            )
            peers.append(await stack.enter_async_context(made))
        await ready(*peers)
        return await meet(peers, drawn, seed)


async def meet(
    peers: Sequence[ReachPeer],
    drawn: Sequence[str],
    seed: int,
    *,
    enough: int | None = None,
) -> Outcome:
    """Link every pair, and wait until nothing gets better, or `enough` pairs are direct.

    `drawn` are the peers' kinds.
    """
    chance = random.Random(seed)
    began = anyio.current_time()
    pairs = [
        pair if chance.random() < 0.5 else pair[::-1]
        for pair in itertools.combinations(range(len(peers)), 2)
    ]
    chance.shuffle(pairs)
    failed = await _dial(peers, pairs)
    seconds = await _settle(peers, pairs, len(pairs) if enough is None else enough) - began
    relayed = Counter(
        " + ".join(sorted((drawn[a], drawn[b])))
        for a, b in pairs
        if _kind(peers[a], peers[b]) is WayKind.RELAYED
    )
    return Outcome(
        pairs=len(pairs),
        linked=len(pairs) - failed,
        direct=len(pairs) - failed - sum(relayed.values()),
        relayed=dict(relayed.most_common()),
        seconds=seconds,
        peers=dict(Counter(drawn).most_common()),
    )


async def _dial(peers: Sequence[ReachPeer], pairs: list[tuple[int, int]]) -> int:
    """How many pairs have no link after one dial and a call."""
    failed = 0
    room = anyio.CapacityLimiter(DIALS_AT_ONCE)

    async def one(a: ReachPeer, b: ReachPeer) -> None:
        nonlocal failed
        async with room:
            try:
                await a.dial(b)
            except Exception as error:
                failed += 1
                print(f"no link: {error}")

    async with anyio.create_task_group() as tasks:
        for a, b in pairs:
            tasks.start_soon(one, peers[a], peers[b])
    return failed


async def _settle(peers: Sequence[ReachPeer], pairs: list[tuple[int, int]], enough: int) -> float:
    """Wait until nothing changes any more, or is direct enough; when the last change was."""
    changed = began = anyio.current_time()
    before = -1
    while anyio.current_time() < min(changed + QUIET, began + PATIENCE):
        relayed = sum(_kind(peers[a], peers[b]) is WayKind.RELAYED for a, b in pairs)
        if relayed != before:
            before, changed = relayed, anyio.current_time()
        if len(pairs) - relayed >= enough:
            break
        await anyio.sleep(0.5)
    return changed


def _kind(a: ReachPeer, b: ReachPeer) -> WayKind | None:
    """The worse of both ends' ways; None without a link."""
    try:
        return max(a.kind(b), b.kind(a))
    except AssertionError:
        return None


def main() -> None:
    """Print one population's figures."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    sites = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    began = time.process_time()
    outcome = anyio.run(run, sites, seed, backend_options={"loop_factory": VirtualLoop})
    print(
        f"seed {seed}: {outcome.linked} of {outcome.pairs} pairs linked, {outcome.share:.1%} direct"
    )
    print(
        f"the last became direct after {outcome.seconds:.0f} s;"
        f" {time.process_time() - began:.0f} s of CPU"
    )
    print("sites:", outcome.peers)
    print("relayed:", outcome.relayed)


if __name__ == "__main__":
    main()
