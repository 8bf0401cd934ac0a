"""Lattica's own links through the real lab's NATs and lines."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.link.helpers import ALICE, BOB, exchange, peer
from tests.netlab import kinds
from tests.netlab.lab import Lab, LabHost
from tests.netlab.processes import LabProcess

pytestmark = [pytest.mark.anyio, pytest.mark.netlab]


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize(
    "kind", [kinds.PORT_RESTRICTED, kinds.SYMMETRIC_RANDOM, kinds.CARRIER_HOME]
)
async def test_a_link_passes_a_nat_and_a_lossy_line(kind: str, kernel: bool) -> None:
    async with Lab(seed=1) as lab:
        site = await lab.site(kind, kernel=kernel, delay=0.01, loss=0.01)
        async with (
            peer(ALICE, await (await site.host()).path()) as alice,
            peer(BOB, await (await lab.host(delay=0.01)).path()) as bob,
        ):
            await alice.endpoint.connect(bob.id, bob.endpoint.addresses)
            await bob.until_linked(alice)
            await exchange(alice.to(bob).link, bob.to(alice), os.urandom(1_000_000))
            await exchange(bob.to(alice).link, alice.to(bob), os.urandom(1_000_000))


async def test_daemons_in_two_networks_make_one_mesh(tmp_path: Path) -> None:
    """Real processes: one in a data centre, one at home."""
    async with Lab(seed=1) as lab:
        server = await lab.host(delay=0.01)
        home = await (await lab.site(kinds.PORT_RESTRICTED, delay=0.01)).host()
        alpha = await lattica(server, "up", tmp_path / "alpha", *listening(server, "alpha"))
        ticket = json.loads(await asyncio.wait_for(alpha.stdout.readline(), 30.0))["ticket"]
        beta = await lattica(home, "join", tmp_path / "beta", ticket, *listening(home, "beta"))
        assert json.loads(await asyncio.wait_for(beta.stdout.readline(), 30.0))["mesh"]
        for asking, folder, other in ((home, "beta", "alpha"), (server, "alpha", "beta")):
            ping = await lattica(asking, "ping", tmp_path / folder, other, "--count", "3")
            told = json.loads(await ping.output())
            assert told["answered"] == 3
            assert 40.0 <= told["ms"]["min"] < 200.0


async def lattica(host: LabHost, command: str, folder: Path, *words: str) -> LabProcess:
    """Start the command line on a host, with a home of its own."""
    argv = [sys.executable, "-m", "lattica", command, *words, "--home", str(folder), "--json"]
    return await host.run(argv)


def listening(host: LabHost, name: str) -> tuple[str, ...]:
    """Options of a daemon that is to be found."""
    return ("--name", name, "--listen", f"{host.address}:4242", "--cpus", "1")


async def test_daemons_behind_routers_become_direct_and_say_so(tmp_path: Path) -> None:
    """Two homes meet over a relay in a data centre, and then without it."""
    async with Lab(seed=2) as lab:
        server, second = await lab.host(delay=0.01), await lab.host(delay=0.01)
        homes = [await (await lab.site(kinds.PORT_RESTRICTED, delay=0.01)).host() for _ in "bc"]
        up = await lattica(server, "up", tmp_path / "a", "--relay", *listening(server, "a"))
        ticket = json.loads(await asyncio.wait_for(up.stdout.readline(), 30.0))["ticket"]
        for name, host, more in (
            ("r", second, ("--relay",)),
            ("b", homes[0], ()),
            ("c", homes[1], ()),
        ):
            daemon = await lattica(
                host, "join", tmp_path / name, ticket, *more, *listening(host, name)
            )
            assert await asyncio.wait_for(daemon.stdout.readline(), 30.0)
        await told(homes[1], tmp_path / "c", "status", lambda said: len(said["relays"]) == 2)
        ping = await lattica(homes[0], "ping", tmp_path / "b", "c", "--count", "20")
        answer = json.loads(await ping.output())
        assert answer["answered"] == 20
        peers = await told(
            homes[0], tmp_path / "b", "peers", lambda said: paths(said).get("c") == "direct"
        )
        assert paths(peers)["a"] == "direct"
        doctor = await told(
            homes[0], tmp_path / "b", "doctor", lambda said: said["network"]["relays"] != []
        )
        assert doctor["network"]["report"]["mapping"] == "independent"
        assert "one address to everybody" in str(doctor["findings"])
        status = await told(server, tmp_path / "a", "status", lambda _: True)
        assert status["relay_sessions"] is not None


def paths(said: list[dict[str, str]]) -> dict[str, str]:
    """The kind of path to each peer, by its name."""
    return {each["name"]: each["path"] for each in said}


async def told(host: LabHost, folder: Path, command: str, is_enough: Callable[[Any], bool]) -> Any:
    """What a command says, asked until it is what is waited for."""
    async with asyncio.timeout(30.0):
        while True:
            said = json.loads(await (await lattica(host, command, folder)).output())
            if is_enough(said):
                return said
            await asyncio.sleep(0.5)
