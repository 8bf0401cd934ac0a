"""Which pairs of the lab's kinds become direct, and by what. `test_plan` shows it packet by packet.

`python -m tests.reach.oracle [tries]` prints the table with figures.
"""

from __future__ import annotations

import sys
from itertools import combinations_with_replacement

from lattica.reach.plan import Method
from tests.netlab import kinds
from tests.netlab.kinds import KINDS
from tests.netlab.nat import Dependence, Ports

PAIRS = tuple(combinations_with_replacement(KINDS, 2))


def is_direct(one: str, other: str) -> bool:
    """Whether two sites of these kinds can have a direct UDP path by any method built."""
    return method(one, other) not in (Method.NONE, Method.HOPELESS)


def method(one: str, other: str) -> Method:
    """What it takes."""
    if kinds.UDP_BLOCKED in (one, other):
        return Method.NONE
    moving = [each for each in (one, other) if is_dependent(each)]
    if not moving:
        return Method.PLAIN
    if len(moving) == 2:
        if all(KINDS[each].ports is Ports.SEQUENTIAL for each in moving):
            return Method.PREDICTION
        welcome = all(KINDS[each].filtering is Dependence.ENDPOINT_INDEPENDENT for each in moving)
        return Method.PLAIN if welcome else Method.HOPELESS
    fixed = other if moving[0] == one else one
    if KINDS[fixed].filtering is not Dependence.ADDRESS_AND_PORT:
        return Method.PLAIN
    foreseen = KINDS[moving[0]].ports in (Ports.SEQUENTIAL, Ports.BLOCK)
    return Method.PREDICTION if foreseen else Method.BIRTHDAY


def is_dependent(kind: str) -> bool:
    """Whether each remote sees such a site at another port."""
    return KINDS[kind].mapping is not Dependence.ENDPOINT_INDEPENDENT


def main(tries: int) -> None:
    """Print, for every pair, how many of the tries became direct, and when."""
    from tests.reach.simulation import World

    for one, other in PAIRS:
        worlds = [World(*(one, other)[:: 1 - 2 * (seed % 2)], seed) for seed in range(tries)]
        times = sorted(at for world in worlds if (at := world.run()) is not None)
        most = max(max(end.packets for end in world.ends) for world in worlds)
        figures = f"{len(times) / tries:7.1%}"
        if times:
            figures += f"  median {times[len(times) // 2]:5.2f} s, last {times[-1]:5.2f} s"
        print(f"{one:24}{other:24}{method(one, other).value:16}{figures}  {most} packets")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
