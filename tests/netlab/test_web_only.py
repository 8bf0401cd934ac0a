"""Daemons in networks that let nothing out but web traffic, or only through a proxy."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.netlab import kinds
from tests.netlab.gateways import with_proxy
from tests.netlab.lab import Lab, LabHost
from tests.netlab.processes import LabProcess

pytestmark = [pytest.mark.anyio, pytest.mark.netlab]


@pytest.mark.parametrize("proxy", [None, pytest.param("", marks=pytest.mark.slow), "me:word"])
async def test_who_has_only_port_443_joins_and_meets_others_there(
    tmp_path: Path, proxy: str | None
) -> None:
    """Two of them talk through the server; with a proxy it is all that gets out."""
    async with Lab(seed=3) as lab:
        server = await lab.host(delay=0.01)
        listening = ("--listen", f"{server.address}:4242", "--tls", f"{server.address}:443")
        up = await lattica(server, "up", tmp_path / "a", "--relay", "--name", "a", *listening)
        ticket = json.loads(await asyncio.wait_for(up.stdout.readline(), 30.0))["ticket"]
        hosts: dict[str, LabHost] = {}
        for name in ("b", "c"):
            site = await lab.site(kinds.TCP_443_ONLY, delay=0.01)
            hosts[name] = await site.host()
            env: dict[str, str] = {}
            if proxy is not None:
                where, port = await with_proxy(site, only=True, credentials=proxy or None)
                env["LATTICA_PROXY"] = f"http://{proxy + '@' if proxy else ''}{where}:{port}"
            joined = await lattica(
                hosts[name],
                "join",
                tmp_path / name,
                ticket,
                *("--name", name, "--listen", f"{hosts[name].address}:4242"),
                env=env,
            )
            assert json.loads(await asyncio.wait_for(joined.stdout.readline(), 40.0))["mesh"]
        await told(hosts["c"], tmp_path / "c", "status", lambda said: said["relays"] == ["a"])
        await told(hosts["b"], tmp_path / "b", "peers", lambda said: len(said) == 3)
        ping = await lattica(hosts["b"], "ping", tmp_path / "b", "c", "--count", "5")
        answer = json.loads(await ping.output())
        assert answer["answered"] == 5
        peers = await told(
            hosts["b"], tmp_path / "b", "peers", lambda said: "relay via a" in str(said)
        )
        kinds_of = {each["name"]: each["path"] for each in peers}
        assert kinds_of == {"a": "tls", "b": "", "c": "relay via a"}


async def lattica(
    host: LabHost,
    command: str,
    folder: Path,
    *words: str,
    env: Mapping[str, str] | None = None,
) -> LabProcess:
    """Start the command line on a host, with a home of its own."""
    argv = [sys.executable, "-m", "lattica", command, *words, "--home", str(folder), "--json"]
    return await host.run(argv, env=env)


async def told(host: LabHost, folder: Path, command: str, enough: Callable[[Any], bool]) -> Any:
    """What a command says, asked until it is what is waited for."""
    async with asyncio.timeout(40.0):
        while True:
            said = json.loads(await (await lattica(host, command, folder)).output())
            if enough(said):
                return said
            await asyncio.sleep(0.5)
