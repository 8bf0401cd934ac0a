"""Ports mapped by a real router's daemon, in namespaces: each protocol, seen from outside."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.path.portmap.home import WAN, Home, home, needs, why_no_router, why_not

pytestmark = needs(why_not(), why_no_router())
PROGRAM = "tests.path.portmap.mapping_host"
ASK = (
    "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_{kind}); s.settimeout(2); "
    "s.connect(('" + WAN + "', 4242)); s.send(b'hello'); print(s.recv(99).decode())"
)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Home]:
    with home(tmp_path) as found:
        yield found


@pytest.mark.parametrize(
    ("protocol", "v1"), [("pcp", False), ("nat-pmp", False), ("upnp", False), ("upnp", True)]
)
def test_ports_are_mapped_reached_from_outside_and_removed(
    made: Home, protocol: str, v1: bool
) -> None:
    made.start_router(v1=v1)
    child = made.start(made.host, PROGRAM, json.dumps({"protocols": [protocol]}))
    both = [f"{WAN}:4242", f"tcp:{WAN}:4242"]
    assert child.until("addresses", both)["protocols"] == [protocol]
    for kind in ("DGRAM", "STREAM"):
        assert made.outside.run("python3", "-c", ASK.format(kind=kind)) == "hello\n"
    assert made.mapped().count("dnat") == 2
    child.end()
    assert made.mapped().count("dnat") == 0


@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp"])
def test_a_mapping_is_renewed_before_it_ends(made: Home, protocol: str) -> None:
    """Asked for 12 s at a time, it is still there after 14."""
    made.start_router(v1=False)
    child = made.start(made.host, PROGRAM, json.dumps({"protocols": [protocol], "lifetime": 12}))
    child.until("addresses", [f"{WAN}:4242", f"tcp:{WAN}:4242"])
    end = time.monotonic() + 14.0
    while time.monotonic() < end:
        time.sleep(1.0)
        assert made.mapped().count("dnat") == 2
    assert made.outside.run("python3", "-c", ASK.format(kind="DGRAM")) == "hello\n"
    child.end()
    assert made.mapped().count("dnat") == 0


def test_without_renewal_a_mapping_ends(made: Home) -> None:
    """So the test above can fail."""
    made.start_router(v1=False)
    child = made.start(made.host, PROGRAM, json.dumps({"protocols": ["pcp"], "lifetime": 12}))
    child.until("addresses", [f"{WAN}:4242", f"tcp:{WAN}:4242"])
    child.kill()
    deadline = time.monotonic() + 40.0
    while made.mapped().count("dnat"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
