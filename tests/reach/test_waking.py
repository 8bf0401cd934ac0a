"""After a sleep nothing is taken for granted: links, relays and mappings are asked anew."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest

from lattica.config import Config, LinkConfig
from lattica.link.liveness import WAKE_PATIENCE, Liveness, Verdict
from lattica.reach.waking import LEAST, Waking
from lattica.virtual_loop import VirtualLoop
from tests.netlab.kinds import PORT_RESTRICTED
from tests.netlab.memory_lab import MemoryLab
from tests.reach.peers import lab_host, lab_peer, lab_relays, ready, until

pytestmark = pytest.mark.anyio
CONFIG = LinkConfig()
LONG = Config().link.far_dead_after + 1.0


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualLoop}


class Elapsed:
    """Seconds that go on in sleep."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def looks(*times: float) -> Iterator[float]:
    """What is missed when looked at every second, but really at these times."""
    clock = Elapsed()
    waking = Waking(clock, 1.0)
    for each in times:
        clock.now = each
        yield waking.slept()


def test_a_loop_that_is_a_little_late_was_not_asleep() -> None:
    assert list(looks(1.0, 2.1, 2.1 + 0.9 * LEAST)) == [0.0, 0.0, 0.0]


def test_what_was_missed_is_told_once() -> None:
    assert list(looks(1.0, 3602.0, 3603.0)) == [0.0, pytest.approx(3600.0), 0.0]


def test_a_clock_that_stands_still_tells_of_no_sleep() -> None:
    assert list(looks(0.0, 0.0, 0.0)) == [0.0, 0.0, 0.0]


def far() -> Liveness:
    liveness = Liveness(CONFIG, 0.0)
    liveness.set_far(may_rest=True)
    return liveness


def test_a_link_that_the_other_end_may_have_given_up_has_to_answer_soon() -> None:
    liveness = far()
    liveness.on_wake(LONG, 5.0)
    assert liveness.is_suspect(5.0)
    assert liveness.due(5.0) <= 5.0 + WAKE_PATIENCE
    assert liveness.check(5.0 + WAKE_PATIENCE) is Verdict.DEAD


def test_an_answer_after_a_sleep_is_enough() -> None:
    liveness = far()
    liveness.on_wake(LONG, 5.0)
    liveness.on_beat(5.5)
    assert not liveness.is_suspect(6.0)
    assert liveness.check(5.0 + WAKE_PATIENCE) is Verdict.FINE


def test_a_nap_ends_no_link() -> None:
    liveness = far()
    liveness.on_wake(CONFIG.far_dead_after / 2, 5.0)
    assert not liveness.is_suspect(5.0)
    assert liveness.check(5.0 + WAKE_PATIENCE) is Verdict.FINE


async def test_who_wakes_finds_out_at_once_who_has_gone_and_reserves_its_relays_anew() -> None:
    lab = MemoryLab(seed=9)
    clock = Elapsed()
    async with (
        lab_relays(lab) as relays,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "a", relays=relays, elapsed=clock) as a,
        lab_peer(lab_host(lab, PORT_RESTRICTED), "b", relays=relays) as b,
    ):
        await ready(a, b)
        await a.dial(b)
        renewed = {each.peer: each.until for each in a.reach.relays}
        b.host.site.cut()
        woken: list[float] = []
        a.reach.woke = lambda: woken.append(anyio.current_time())
        clock.now = LONG + 1.0
        await until(lambda: woken, 2.0)
        await until(lambda: a.endpoint.find(b.id) is None, 10.0)
        assert anyio.current_time() - woken[0] < WAKE_PATIENCE + 0.5
        assert len(a.reach.relays) == 2
        assert all(each.until > renewed[each.peer] for each in a.reach.relays)
        assert a.reach.counters["woke"] == 1
