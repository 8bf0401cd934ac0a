"""When a link to another machine is asked for a sign of life, and when it is given up."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from lattica.config import LinkConfig
from lattica.link.liveness import Liveness, Verdict
from lattica.path.memory import Conditions, PacketNetwork
from lattica.virtual_loop import VirtualLoop
from tests.link.helpers import ALICE, BOB, Recorder, peer, two

pytestmark = pytest.mark.anyio
CONFIG = LinkConfig()


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def far(*, may_rest: bool = True, is_dialer: bool = False) -> Liveness:
    liveness = Liveness(CONFIG, 0.0, is_dialer=is_dialer)
    liveness.set_far(may_rest=may_rest)
    return liveness


def steps(liveness: Liveness, now: float) -> list[tuple[float, Verdict, bool]]:
    """What a link does that hears nothing from `now` on, and whether it is suspect then."""
    found: list[tuple[float, Verdict, bool]] = []
    while not found or found[-1][1] is not Verdict.DEAD:
        now = liveness.due(now)
        found.append((now, liveness.check(now), liveness.is_suspect(now)))
    return found


def test_nobody_is_suspect_for_not_having_been_asked() -> None:
    liveness = far()
    assert liveness.due(0.0) == CONFIG.far_heartbeat
    assert not liveness.is_suspect(CONFIG.far_heartbeat)
    assert liveness.check(CONFIG.far_heartbeat) is Verdict.BEAT
    found = steps(liveness, CONFIG.far_heartbeat)
    suspect = next(at for at, _, is_suspect in found if is_suspect)
    assert suspect - CONFIG.far_heartbeat < CONFIG.dead_after - CONFIG.heartbeat
    dead = found[-1][0] - CONFIG.far_heartbeat
    assert dead == pytest.approx(CONFIG.far_dead_after - CONFIG.heartbeat)


def test_a_handler_that_cannot_tell_is_taken_to_wait_always() -> None:
    assert far(may_rest=False).due(0.0) == CONFIG.heartbeat


@pytest.mark.parametrize("is_dialer", [False, True])
def test_whoever_begins_to_wait_asks_at_once(is_dialer: bool) -> None:
    liveness = far(is_dialer=is_dialer)
    liveness.set_brisk(True)
    assert liveness.due(8.0) <= 8.0
    assert liveness.check(8.0) is Verdict.BEAT
    suspect = next(at for at, _, is_suspect in steps(liveness, 8.0) if is_suspect)
    assert suspect < 9.0


def test_a_dark_path_is_not_flooded_with_questions() -> None:
    liveness = far()
    liveness.set_brisk(True)
    asked = [at for at, verdict, _ in steps(liveness, 0.0) if verdict is Verdict.PING]
    late = [at for at in asked if at > 2 * CONFIG.dead_after]
    assert len(late) < (CONFIG.far_dead_after - 2 * CONFIG.dead_after) / CONFIG.heartbeat + 1


def test_however_far_it_is_it_is_given_the_time_to_answer() -> None:
    liveness = far()
    liveness.set_brisk(True)
    assert liveness.check(1.0) is Verdict.BEAT
    liveness.expect(1.0)
    assert not liveness.is_suspect(2.1)
    assert liveness.is_suspect(3.0)


async def test_a_peer_on_this_machine_is_given_up_no_later_than_ever() -> None:
    network = PacketNetwork()
    here, there = network.path("127.0.0.1", 1), network.path("127.0.0.1", 2)
    async with peer(ALICE, here, config=CONFIG) as alice, peer(BOB, there, config=CONFIG) as bob:
        await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        network.silence("127.0.0.1:2")
        began = anyio.current_time()
        await alice.until_linked(bob, is_up=False)
        assert anyio.current_time() - began < 2.0


async def test_a_hint_of_the_network_still_ends_a_far_link_quickly() -> None:
    network = PacketNetwork(Conditions(latency=0.02))
    async with two(network, CONFIG) as (alice, bob):
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        recorder: Recorder = alice.to(bob)
        network.silence("b:1")
        began = anyio.current_time()
        alice.endpoint.path_refused(link.virtual_address)  # type: ignore[attr-defined]
        await recorder.until(lambda: bool(recorder.lost))
        assert anyio.current_time() - began < 0.5


async def test_what_is_sent_meanwhile_does_not_put_the_end_off() -> None:
    network = PacketNetwork()
    here, there = network.path("127.0.0.1", 1), network.path("127.0.0.1", 2)
    async with peer(ALICE, here, config=CONFIG) as alice, peer(BOB, there, config=CONFIG) as bob:
        link = await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
        await bob.until_linked(alice)
        recorder: Recorder = alice.to(bob)
        network.silence("127.0.0.1:2")
        began = anyio.current_time()
        stream_id = link.open_stream(unidirectional=True)
        while not recorder.lost and anyio.current_time() - began < 2.0:
            # Each packet that goes out has the same answer: nobody listens there.
            alice.endpoint.path_refused(link.virtual_address)  # type: ignore[attr-defined]
            link.write(stream_id, bytes(4000))
            await anyio.sleep(0.03)
        assert anyio.current_time() - began < 0.5
