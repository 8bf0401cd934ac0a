"""Daemons that find each other on their local network, with nothing beyond it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path

import pytest

from tests.netlab import kinds
from tests.netlab.lab import Lab
from tests.netlab.test_web_only import lattica, told

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.netlab,
    pytest.mark.skipif(
        importlib.util.find_spec("zeroconf") is None, reason="zeroconf is not installed: extra nat"
    ),
]


async def test_without_the_internet_peers_of_one_home_find_each_other(tmp_path: Path) -> None:
    """They have met elsewhere before, at addresses that are of no use here."""
    async with Lab(seed=4) as lab:
        office = await lab.site(kinds.PORT_RESTRICTED, delay=0.01)
        hosts = {name: await office.host() for name in ("a", "b")}
        up = await lattica(
            hosts["a"], "up", tmp_path / "a", "--name", "a", "--listen", "0.0.0.0:4242"
        )
        ticket = json.loads(await asyncio.wait_for(up.stdout.readline(), 30.0))["ticket"]
        joined = await lattica(
            hosts["b"], "join", tmp_path / "b", ticket, "--name", "b", "--listen", "0.0.0.0:4242"
        )
        assert await asyncio.wait_for(joined.stdout.readline(), 30.0)
        for daemon in (up, joined):
            await daemon.terminate()
            await daemon.wait()
        home = await lab.site(kinds.PORT_RESTRICTED, delay=0.01)
        await home.cut()
        for name, host in hosts.items():
            await host.move(home)
            started = await lattica(
                host, "up", tmp_path / name, "--name", name, "--listen", "0.0.0.0:4343"
            )
            assert await asyncio.wait_for(started.stdout.readline(), 30.0)
        peers = await told(hosts["a"], tmp_path / "a", "peers", lambda said: "lan" in str(said))
        assert {each["name"]: each["path"] for each in peers} == {"a": "", "b": "lan"}
