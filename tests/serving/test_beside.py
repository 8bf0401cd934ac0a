"""`lattica serve` and `gateway` on a machine whose peer runs already, with real processes."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.daemons import Daemons, lattica, running


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    with running(tmp_path) as result:
        yield result


def test_they_join_the_running_peers_mesh_without_a_ticket(daemons: Daemons, llama: Path) -> None:
    peer = daemons.start("peer", "up")
    server = daemons.start("server", "serve", str(llama), "--model-name", "m", home="peer")
    assert server.up["mesh"] == peer.up["mesh"]
    assert server.up["peer"] != peer.up["peer"]
    server.wait_for("serving")
    gateway = daemons.start("gateway", "gateway", "--port", "0", home="peer")
    url = gateway.wait_for("gateway")["url"]
    with urllib.request.urlopen(f"{url}/models", timeout=20) as answer:
        assert [model["id"] for model in json.load(answer)["data"]] == ["m"]
    listed = json.loads(lattica("peers", "--json", home=peer.home).stdout)
    assert {each["name"] for each in listed} == {"peer", "server", "gateway"}


def test_a_guest_peer_cannot_invite_and_says_what_to_do(daemons: Daemons) -> None:
    first = daemons.start("first", "up")
    daemons.start("second", "join", first.up["ticket"])
    late = daemons.start("gateway", "gateway", "--port", "0", home="second")
    text = late.failure()
    assert late.process.returncode == 1
    assert "--ticket" in text
    assert "where the mesh was founded" in text
