"""A home whose router maps ports: daemons, a real `miniupnpd`, and a stranger who dials."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.netlab.gateways import cannot_map_ports, with_miniupnpd
from tests.netlab.kinds import SYMMETRIC_RANDOM
from tests.netlab.lab import Lab, LabHost, LabSite
from tests.netlab.processes import LabProcess
from tests.netlab.test_peers import lattica, listening

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.netlab,
    pytest.mark.skipif(cannot_map_ports() is not None, reason=str(cannot_map_ports())),
]
DELAY = 0.01  # seconds one way between a site and the internet


async def test_a_stranger_dials_a_home_whose_router_maps_ports(tmp_path: Path) -> None:
    """Without the mapping these two could only meet over a relay: both are symmetric."""
    async with Lab(seed=1) as lab:
        server = await lab.host(delay=DELAY)
        site = await lab.site(SYMMETRIC_RANDOM, delay=DELAY)
        await with_miniupnpd(site)
        home = await site.host()
        stranger = await (await lab.site(SYMMETRIC_RANDOM, delay=DELAY)).host()

        up = await lattica(server, "up", tmp_path / "alpha", *listening(server, "alpha"))
        ticket = await said(up, "ticket")
        beta = await lattica(home, "join", tmp_path / "beta", ticket, *listening(home, "beta"))
        await said(beta, "mesh")
        mapped = await until(lambda: mapped_address(home, tmp_path / "beta"), 15.0)
        assert mapped == f"{site.address}:4242"
        assert "dnat" in await mappings(site)

        gamma = await lattica(
            stranger, "join", tmp_path / "gamma", ticket, *listening(stranger, "gamma")
        )
        await said(gamma, "mesh")

        async def is_direct() -> bool:
            await lattica_says(stranger, "ping", tmp_path / "gamma", "beta", "--count", "1")
            peers = await lattica_says(stranger, "peers", tmp_path / "gamma")
            found = next(each for each in peers if each["name"] == "beta")
            return found["path"] == "direct" and found["address"] == mapped

        assert await until(is_direct, 20.0)
        await beta.send_signal(signal.SIGTERM)
        assert await beta.wait(15.0) == 0
        assert "dnat" not in await mappings(site)


async def said(process: LabProcess, key: str) -> str:
    """What a daemon's first line says of itself."""
    line = await asyncio.wait_for(process.stdout.readline(), 30.0)
    assert line, (await process.stderr.read()).decode()
    return str(json.loads(line)[key])


async def lattica_says(host: LabHost, command: str, folder: Path, *words: str) -> Any:
    """The answer of a command, decoded."""
    return json.loads(await (await lattica(host, command, folder, *words)).output())


async def mapped_address(host: LabHost, folder: Path) -> str | None:
    """Where a daemon says that its router keeps UDP open for it, once it publishes that."""
    network = (await lattica_says(host, "doctor", folder))["network"]
    mapped = [each for each in network["mapped"] if each in network["published"]]
    return next((each for each in mapped if not each.startswith("tcp:")), None)


async def mappings(site: LabSite) -> str:
    """The router's table of ports that are let in."""
    listing = ["nft", "list", "chain", "inet", "lattica_upnp", "mapped"]
    return await (await site.run_on_router(listing)).output()


async def until(ask: Callable[[], Awaitable[Any]], timeout: float) -> Any:
    """The first answer that is one."""
    with anyio.fail_after(timeout):
        while not (answer := await ask()):
            await anyio.sleep(0.2)
        return answer
