"""Who lies, copies, floods or spoils packets in the real lab changes nothing for others.

`tests/reach/test_attackers.py` shows more of them on the virtual clock.
"""

from __future__ import annotations

import os

import anyio
import msgspec
import pytest

from lattica.path.interface import PROBE, PROBE_REPLY, RELAY
from lattica.reach.messages import News
from lattica.reach.report import Mapping, NatReport, Ports
from tests.netlab.attackers import received, send_copies, wiretap
from tests.netlab.kinds import PORT_RESTRICTED, PUBLIC, SYMMETRIC_RANDOM
from tests.netlab.lab import Lab, LabHost
from tests.netlab.reach_peers import PORT, RealPeer, real_host, real_peer, real_relays
from tests.reach.load import load
from tests.reach.peers import ready, until
from tests.reach.test_attackers import FEW
from tests.reach.test_matrix import is_relayed
from tests.reach.triangle import Faults

pytestmark = [pytest.mark.anyio, pytest.mark.netlab]
FORGED = 1000  # of each sort
FLOOD_RATE = 2000.0  # packets a second
FAULTS = {"drop": 0.03, "repeat": 0.1, "delay": 0.05, "tamper": 0.03}


def lie(peer: RealPeer, victim: LabHost, report: NatReport) -> None:
    """Have a peer tell of a victim's addresses as its own."""
    places = tuple(f"{victim.address}:{port}" for port in range(1000, 1012))
    news = News(places, (), (victim.address,), msgspec.structs.replace(report, public=places[:1]))
    peer.reach.candidates.news = lambda: news  # type: ignore[method-assign]


async def test_victims_of_liars_get_a_few_small_packets() -> None:
    """One liar tells of another one's addresses, the other of ports that must be guessed."""
    async with (
        Lab(seed=5) as lab,
        real_relays(lab) as relays,
        real_peer(await real_host(lab, SYMMETRIC_RANDOM), "liar", relays=relays) as liar,
        real_peer(await real_host(lab, SYMMETRIC_RANDOM), "bluffer", relays=relays) as bluffer,
        real_peer(await real_host(lab, PORT_RESTRICTED), "b", relays=relays) as b,
    ):
        await ready(liar, bluffer, b)
        victims = [await lab.host() for _ in range(2)]
        lie(liar, victims[0], NatReport())
        lie(bluffer, victims[1], NatReport(mapping=Mapping.DEPENDENT, ports=Ports.RANDOM))
        before = [await received(each) for each in victims]
        await liar.dial(b)
        await b.dial(bluffer)
        await anyio.sleep(3.0)
        for victim, (packets, size) in zip(victims, before, strict=True):
            packets_now, size_now = await received(victim)
            print(f"{packets_now - packets} packets, {size_now - size} bytes")
            assert 0 < packets_now - packets <= FEW  # the next attempt comes after 5 s
            assert size_now - size < 1_250
        await b.check_transfer(liar)
        await b.check_transfer(bluffer)


async def test_copied_packets_move_no_link() -> None:
    """Also with the right source, and from somebody who saw all that came in."""
    async with (
        Lab(seed=5) as lab,
        real_relays(lab) as relays,
        real_peer(await real_host(lab, PORT_RESTRICTED), "a", relays=relays) as a,
        real_peer(await real_host(lab, PUBLIC), "b", relays=relays) as b,
    ):
        await ready(a, b)
        thief = await lab.host()
        tap = await wiretap(b.host, lab.folder / "tap")
        await a.dial(b)
        await a.check_transfer(b)
        link, where = b.link(a), b.link(a).address
        await tap.kill()
        silent = await received(thief)
        got = await received(b.host)
        copied = await send_copies(thief, lab.folder / "tap", 500)
        await a.check_transfer(b)
        await anyio.sleep(1.0)
        assert copied == 500
        assert (await received(b.host))[0] - got[0] >= 2 * copied
        assert await received(thief) == silent
        assert b.link(a) is link
        assert b.link(a).address == where
        steering = link.steering
        assert steering is not None
        assert steering.ways is not None
        assert thief.address not in str([link.path_of(way.address) for way in steering.ways.all])


async def test_a_flooded_relay_that_spoils_frames_loses_no_call() -> None:
    """Forged probes and frames at its socket, and faults of its own in what it forwards."""
    async with (
        Lab(seed=5) as lab,
        real_relays(lab) as relays,
        real_peer(await real_host(lab, SYMMETRIC_RANDOM), "a", relays=relays) as a,
        real_peer(await real_host(lab, SYMMETRIC_RANDOM), "b", relays=relays) as b,
    ):
        await ready(a, b)
        await a.dial(b)
        assert is_relayed(a, b)
        faults = Faults(FAULTS)
        for relay in relays:
            forward = relay.path.relay.forward
            assert forward is not None
            relay.path.relay.forward = lambda frames, forward=forward: forward(
                faults.left_of(frames)
            )
        relay = next(each for each in relays if str(each.id) in a.link(b).address)
        link, attacker = a.link(b), await lab.host()
        silent = await received(attacker)
        counted = relay.endpoint.counters.total() + relay.reach.counters.total()
        sock = await attacker.socket()

        async def flood() -> None:
            for sort in (PROBE, PROBE_REPLY, RELAY) * FORGED:
                sock.sendto(bytes((sort,)) + os.urandom(70), (relay.host.address, PORT))
                await anyio.sleep(1 / FLOOD_RATE)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood)
            async with load(a, b, 3.0) as made:
                pass
            await a.check_transfer(b)
            await b.check_transfer(a)
        made.check()
        print(f"{made.sent} calls, gap {made.gap():.2f} s, {dict(faults.done)}")
        assert made.gap() < 2.5
        assert a.link(b) is link
        assert min(faults.done[each] for each in FAULTS) > 20
        told = relay.endpoint.counters.total() + relay.reach.counters.total() - counted
        assert told >= 3 * FORGED
        assert relay.reach.forwarder.statistics().waiting == 0
        assert await received(attacker) == silent
        await until(lambda: is_relayed(a, b), 1.0)
