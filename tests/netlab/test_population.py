"""Sites of the kinds that people have, all linked to all at once, through real NATs.

`tests/reach/population.py` shows forty of them on the virtual clock.
"""

from __future__ import annotations

import itertools

import anyio
import pytest

from lattica.errors import LatticaError
from tests.netlab.reach_peers import RealPeer, known, real_crowd
from tests.netlab.test_reach import check_claims
from tests.reach.peers import ready
from tests.reach.population import draw, meet
from tests.reach.test_matrix import limit

pytestmark = [pytest.mark.anyio, pytest.mark.netlab]
SEED = 1
TOGETHER = 4  # pairs


@pytest.mark.parametrize("sites", [6, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.timeout(400)
async def test_a_population_is_linked_and_as_direct_as_its_networks_allow(sites: int) -> None:
    drawn = draw(sites, SEED)
    possible = sum(limit(one, other) > 0 for one, other in itertools.combinations(drawn, 2))
    async with real_crowd(drawn, seed=SEED, relays=3) as (peers, relays):
        await ready(*peers)
        outcome = await meet(peers, drawn, SEED, enough=possible)
        print(outcome, f"{outcome.share:.1%} direct, {possible} can be")
        assert outcome.linked == outcome.pairs
        assert outcome.direct >= possible
        room = anyio.CapacityLimiter(TOGETHER)
        faults: list[str] = []

        async def look(a: RealPeer, b: RealPeer) -> None:
            async with room:
                try:
                    await check_claims(relays, a, b)
                except (AssertionError, LatticaError) as error:
                    faults.append(f"{error}: {known(a, b)}; {known(b, a)}")

        async with anyio.create_task_group() as tasks:
            for a, b in itertools.combinations(peers, 2):
                tasks.start_soon(look, a, b)
        assert not faults
